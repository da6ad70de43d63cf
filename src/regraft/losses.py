"""Losses: logits and truth -> one number for each sample, so that the last, smaller batch weighs what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import Tensor


class LossSpec(Named):
    """Common to all losses."""

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, classes], [b] int64 -> [b]"""
        raise NotImplementedError


class CrossEntropy(LossSpec):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7)."""

    label_smoothing: float = doc("weight spread over the other classes, 0..1", ge=0, lt=1)

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, truth, label_smoothing=self.label_smoothing, reduction="none")


GROUP = Group("loss", {"cross_entropy": CrossEntropy}, "regraft.losses", about="what training minimises")
