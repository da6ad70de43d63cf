"""What the net that reads lines of text takes: `crnn.py` builds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from regraft.errors import Problem
from regraft.models.spec import ModelSpec
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.chain import Backbone
    from regraft.datasets.source import Source


class Crnn(ModelSpec):
    """Convolutions turn a line into columns, which LSTM layers read in both directions (Shi, Bai and Yao 2015)."""

    depth: int = doc("number of convolutions, 1 or more; each halves the height, as long as 2 px are left", ge=1)
    width: int = doc("channels of the first convolution; each further one has twice as many, up to four times", ge=1)
    halvings: int = doc("how many of the first convolutions halve the width of the line too", ge=0)
    layers: int = doc("LSTM layers, 1 or more", ge=1)
    units: int = doc("units of each LSTM layer and direction", ge=1)
    dropout: float = doc("fraction 0..1 of what enters each LSTM layer that is dropped in training", ge=0, lt=1)

    takes: ClassVar = ("array",)

    def unfit(self, kind: str) -> list[Problem]:
        return [] if kind == "text" else [Problem("name", self.name, f"it reads text, and truth of kind {kind} is none; task=ocr has such")]

    def lacks(self, source: Source) -> list[Problem]:
        """CTC needs a column for each character, and one more between two equal ones (Graves et al. 2006, section 3)."""
        truth = source.samples.columns.target
        if truth is None or source.shape is None or len(source.shape) != 2:
            return []
        texts = truth[:, 0]  # [n, L]
        needed = int(((texts > 0).sum(1) + ((texts[:, 1:] == texts[:, :-1]) & (texts[:, 1:] > 0)).sum(1)).max(initial=0))
        columns = source.shape[1] >> self.halvings
        if needed <= columns:
            return []
        remedy = f"a line needs {needed} columns, and {columns} are left of its {source.shape[1]} px; fewer halvings would work"
        return [Problem("halvings", self.halvings, remedy)]

    def build_for(self, enters: Mapping[str, Any]) -> Backbone:
        """The net for lines [h, w], with random weights from torch's global stream. Raises UserError for another shape."""
        from regraft.models import crnn

        return crnn.build(self, tuple(enters["shape"]))
