"""Numbers are learnt in units of train's deviation, whatever the data's own units are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Units(NamedTuple):
    """The mean and deviation of each of train's k columns."""

    mean: Tensor  # [k]
    deviation: Tensor  # [k]

    @classmethod
    def of(cls, truth: Tensor) -> Units:
        """[n, k]; a column that never changes keeps its scale"""
        deviation = truth.double().std(0, correction=0)
        return cls(truth.double().mean(0).float(), torch.where(deviation > 0, deviation, torch.ones_like(deviation)).float())

    def within(self, truth: Tensor) -> Tensor:
        """In these units."""
        return (truth - self.mean.to(truth)) / self.deviation.to(truth)

    def back(self, logits: Tensor) -> Tensor:
        """In the data's own."""
        return logits * self.deviation.to(logits) + self.mean.to(logits)
