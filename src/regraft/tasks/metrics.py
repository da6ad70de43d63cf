"""Means over the classes that are there: torchmetrics counts a class that no picture has as zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import R2Score
from torchmetrics.classification import MulticlassAUROC, MultilabelAUROC, MultilabelAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat


class _OfThoseThere:
    """Before a metric of one value for each class: gives their mean over the classes that some pictures have and some have not."""

    target: Any
    num_outputs: int

    def compute(self) -> Tensor:
        truth = dim_zero_cat(self.target)  # [n] int64 or [n, k]
        held = truth.bool() if truth.ndim > 1 else torch.nn.functional.one_hot(truth, self.num_outputs).bool()  # [n, k]
        there = held.any(0) & ~held.all(0)  # [k]
        values = super().compute()  # type: ignore[misc]
        return values[there].mean()  # NaN where there are none


class MeanClassAUROC(_OfThoseThere, MulticlassAUROC):  # type: ignore[misc]
    """Each class against the rest."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs, average="none")
        self.num_outputs = outputs


class MeanTagAUROC(_OfThoseThere, MultilabelAUROC):  # type: ignore[misc]
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs, average="none")
        self.num_outputs = outputs


class MeanAveragePrecision(_OfThoseThere, MultilabelAveragePrecision):  # type: ignore[misc]
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs, average="none")
        self.num_outputs = outputs


class R2(R2Score):
    """The mean over the outputs; NaN for fewer than two pictures, which have no variance."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else torch.tensor(torch.nan)
