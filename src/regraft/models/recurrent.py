"""Recurrent nets: each layer is a stage that reads padded sequences as if nothing had been padded.

A sequence is one tensor [b, T, f + 1] whose last feature is the mask, 1 where there is a step and 0 after the last one; tokens are int64
[b, T], 0 after the last one. The mask travels through all layers, so that one tensor enters each stage and frozen layers are cached like
any others. Shapes: b sequences, T steps, f features, h units, P outputs of each step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regraft.chain import Backbone
from regraft.streams import Dropout

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
SILENT = -100.0  # the logit of a padded step: a probability of 0


def build(
    cell: str, depth: int, width: int, bidirectional: bool, dropout: float, embedding: int, pool: str, enters: Mapping[str, Any]
) -> Backbone:
    """[b, T, f + 1], or tokens [b, T] -> [b, h], or with pool=none [b, T, h + 1], with random weights; h is the width, or with both
    directions twice the width. `enters`: a set's facts of what enters the net: kind, shape, tokens (how many there are)."""
    tokens = enters["kind"] == "tokens"
    directions = 2 if bidirectional else 1
    inputs = [embedding if tokens else enters["shape"][-1] - 1, *[width * directions] * (depth - 1)]
    parts: OrderedDict[str, nn.Module] = OrderedDict({"embedding": Embedding(enters["tokens"], embedding)} if tokens else {})
    for i, features in enumerate(inputs):
        parts[f"layer{i + 1}"] = Layer(cell, features, width, bidirectional, dropout if i else 0.0)
    stages = {stage: (stage,) for stage in parts}
    if pool != "none":
        parts["pool"] = Pool(pool, directions)
    return Backbone(nn.Sequential(parts), stages, "", mean=(), std=(), channels=0, least=0)


class Embedding(nn.Module):
    """A vector for each token: [b, T] int64 -> [b, T, e + 1]. Token 0 is the padding."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, features, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.table(x)
        return torch.cat([vectors, (x != 0)[..., None].to(vectors)], -1)


class Layer(nn.Module):
    """One layer of a recurrent net, dropout on what enters it: [b, T, f + 1] -> [b, T, h + 1], 0 at padded steps.

    Sequences are packed, so that a backward direction begins at each one's own last step. A sequence of no steps gives zeros.
    """

    def __init__(self, cell: str, features: int, width: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.cell = CELLS[cell](features, width, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        mask = x[..., -1:]
        lengths = (mask[..., 0] > 0).sum(1).clamp(min=1).cpu()  # [b]; packing takes no sequence of no steps
        packed = pack_padded_sequence(self.dropout(x[..., :-1]), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=x.shape[1])
        return torch.cat([y.to(x.dtype) * (mask > 0), mask], -1)


class Pool(nn.Module):
    """[b, T, h + 1] -> [b, h]: the state that each direction ends with (`last`), or the mean over the steps (`mean`); no steps: zeros."""

    def __init__(self, way: str, directions: int) -> None:
        super().__init__()
        self.way, self.directions = way, directions

    def forward(self, x: Tensor) -> Tensor:
        y, steps = x[..., :-1], (x[..., -1] > 0).sum(1)  # [b, T, h], [b]
        if self.way == "mean":
            return y.sum(1) / steps.clamp(min=1)[:, None]
        last = y[torch.arange(len(y), device=y.device), (steps - 1).clamp(min=0)]  # [b, h]
        width = y.shape[-1] // self.directions
        return torch.cat([last[:, :width], y[:, 0, width:]], -1)  # the backward direction ends at the first step

    def extra_repr(self) -> str:
        return self.way


class FrameHead(nn.Module):
    """P independent yes or no answers for each step: [b, T, h + 1] -> logits [b, T, P].

    `losses` is minus the log-likelihood of a step in nats, summed over its outputs (Boulanger-Lewandowski et al. 2012, section 6) and
    averaged over a sequence's own steps: padding does not change it, and each sequence weighs the same. The metric `nll` is the mean over
    all steps of a set.
    """

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        """`features`: of what enters, the mask among them."""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(features - 1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x[..., :-1])).float().masked_fill(x[..., -1:] <= 0, SILENT)

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """[b, T, h + 1], [b, T, P + 1], [b] -> [b]; nothing is drawn from the seeds"""
        nll, real = step_nll(self(x), truth)
        return nll.sum(1) / real.sum(1).clamp(min=1)


def step_nll(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [b, T, P], truth [b, T, P + 1] -> minus each step's log-likelihood in nats, 0 at padded steps, and which are real: [b, T]"""
    real = truth[..., -1] > 0
    return binary_cross_entropy_with_logits(logits, truth[..., :-1], reduction="none").sum(-1) * real, real
