"""What recurrent nets take: RNN, LSTM and GRU differ in their cell alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regraft.errors import Problem
from regraft.models.spec import ModelSpec
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.chain import Backbone


def pooled(pool: str, others: str, kind: str) -> list[Problem]:
    """What keeps a net from answering truths of this kind: each step has an answer, or the sequence one."""
    if (kind == "frames") == (pool == "none"):
        return []
    needed = "none: every step has an answer" if kind == "frames" else f"{others}: a sequence has one answer"
    return [Problem("pool", pool, f"truth of kind {kind} needs {needed}")]


class Recurrent(ModelSpec):
    """Common to the recurrent nets: one stage for each layer, and one for the embedding where tokens are read."""

    depth: int = doc("number of recurrent layers, 1 or more", ge=1)
    width: int = doc("units of each layer and direction", ge=1)
    bidirectional: bool = doc("true or false: whether each layer also reads from the last step to the first")
    dropout: float = doc("fraction 0..1 of what enters each layer but the first that is dropped in training", ge=0, lt=1)
    embedding: int = doc("length of each token's vector; unused where no tokens are read", ge=1)
    pool: Literal["last", "mean", "none"] = doc(
        "what becomes of the steps: last (the state after the last one), mean, or none (each one's own, for task=frames)"
    )

    takes: ClassVar = ("sequence", "tokens")
    cell: ClassVar[str]

    def problems(self) -> list[Problem]:
        remedy = "with pool=none each step would be answered by the steps after it; bidirectional=false, or pool=last or mean would work"
        return [*super().problems(), *([Problem("bidirectional", True, remedy)] if self.bidirectional and self.pool == "none" else [])]

    def unfit(self, kind: str) -> list[Problem]:
        return pooled(self.pool, "last or mean", kind)

    def build_for(self, enters: Mapping[str, Any]) -> Backbone:
        """The net for samples of such shape, with random weights from torch's global stream."""
        from regraft.models import recurrent

        return recurrent.build(self.cell, self.depth, self.width, self.bidirectional, self.dropout, self.embedding, self.pool, enters)


class Rnn(Recurrent):
    """The plain recurrent net: tanh of the step and of the state before it (Elman 1990)."""

    cell = "rnn"


class Lstm(Recurrent):
    """Long short-term memory: gates decide what a state keeps (Hochreiter and Schmidhuber 1997)."""

    cell = "lstm"


class Gru(Recurrent):
    """Gated recurrent units: two gates in place of three (Cho et al. 2014)."""

    cell = "gru"
