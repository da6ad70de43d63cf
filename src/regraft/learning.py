"""What learns from the truth itself, or from what enters it alone: its loss is its own, and none of logits and labels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from regraft.streams import generator


class Learner(Protocol):
    """A head whose spec says `learns`: an nn.Module, [b, ...] -> answers [b, ...] of one shape."""

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """[b]: the loss of each sample, whatever others are in the batch. `x` [b, ...]: what enters; `truth` [b, ...]: as the set has it;
        `seeds` [b] int64: what is random for a sample follows from its seed alone."""


class Solitary(Protocol):
    """A stage that a phase of `objective` stage trains: an nn.Module."""

    def losses(self, x: Tensor, seeds: Tensor) -> Tensor:
        """[b]: as of `Learner`, without any truth"""

    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """What else is to be known of each sample, by name: [b]"""


def seeds(key: tuple[int | str, ...], rows: Tensor) -> Tensor:
    """One seed for each sample: a function of the key, e.g. (seed, "sample", epoch), and of the sample's number. [b] int64 -> [b] int64"""
    return torch.tensor([generator(*key, row).initial_seed() for row in rows.tolist()])
