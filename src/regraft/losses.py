"""Losses: logits and truth -> one number for each sample, so that the last, smaller batch weighs what it holds.

Truth is one label [b] int64 ("class"), many labels [b, k] float, each 0 or 1 ("tags"), or numbers [b, k] float ("numbers").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from regraft.errors import Problem, UserError
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Weights = Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None


class LossSpec(Named):
    """Common to all losses."""

    kinds: ClassVar[tuple[str, ...]] = ("class",)  # of truth that it takes: class, tags, numbers, boxes, text, frames

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, classes], truth -> [b]"""
        raise NotImplementedError

    def fitted(self, labels: Tensor, classes: int) -> Loss:
        """The loss as training uses it; `labels`: the train pictures' truth, [n] int64 or [n, classes] float."""
        return self


class Weighted(LossSpec):
    """Common to the losses of labels: a weight for each class."""

    kinds = ("class", "tags")

    class_weights: Weights = doc("factor on each class's loss: null (1), balanced (rare classes count as much as others), or a list")

    def fitted(self, labels: Tensor, classes: int) -> Loss:
        """With the class weights. Raises UserError for a list that has not one weight for each class.

        balanced, one label: n / (k n_c), n pictures of k classes, n_c of them of class c, so that each class has the same part in the
        sum and the mean weight is 1; a class without pictures has weight 0 and does not count in k. Many labels: each label's pictures
        with and without it are balanced, n / (2 n_c) and n / (2 (n - n_c)). A list's weight is a factor on a class's pictures, or on
        a label's term.
        """
        if self.class_weights is None:
            return self
        if isinstance(self.class_weights, list) and len(self.class_weights) != classes:
            remedy = f"{classes} weights are needed, one for each class in their order, or balanced"
            raise UserError(Problem("loss.class_weights", self.class_weights, remedy))
        import torch

        written = isinstance(self.class_weights, list)
        table = (
            torch.tensor([self.class_weights] * 2) if written else _balanced(labels, classes)
        )  # [2, classes]: without the label, with it

        def weighted(logits: Tensor, truth: Tensor) -> Tensor:
            weights = table.to(logits.device, logits.dtype)
            if not truth.is_floating_point():
                return self(logits, truth) * weights[1][truth]
            return (self.terms(logits, truth) * torch.where(truth > 0.5, weights[1], weights[0])).mean(1)

        return weighted

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, classes], [b] int64 or [b, classes] float -> [b], without class weights; many labels: the mean over the labels."""
        return self.terms(logits, truth).mean(1) if truth.is_floating_point() else self.one(logits, truth)

    def one(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, classes], [b] int64 -> [b]"""
        raise NotImplementedError

    def terms(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, k], [b, k] float of 0 and 1 -> [b, k]"""
        raise NotImplementedError


class CrossEntropy(Weighted):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7); for many labels, binary cross-entropy."""

    label_smoothing: float = doc("weight spread over the other classes, 0..1", ge=0, lt=1)

    def one(self, logits: Tensor, truth: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, truth, label_smoothing=self.label_smoothing, reduction="none")

    def terms(self, logits: Tensor, truth: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        smooth = truth * (1 - self.label_smoothing) + self.label_smoothing / 2  # each label is a choice between two
        return binary_cross_entropy_with_logits(logits, smooth, reduction="none")


class Focal(Weighted):
    """Focal loss: what is right already counts little (Lin et al. 2017, eq. 4 and 5)."""

    gamma: float = doc("how little: the loss is multiplied by (1 - p) ** gamma; 0: cross-entropy", ge=0)
    alpha: float | None = doc(
        "many labels: weight of the labels that are there, 0..1, 1 - alpha of the others; null: 1 of both", ge=0, le=1
    )

    def one(self, logits: Tensor, truth: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(logits, truth, reduction="none")  # -log p of the true class
        wrong = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny)  # 1 - p; at 0 a root has no gradient
        return wrong**self.gamma * loss

    def terms(self, logits: Tensor, truth: Tensor) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss

        return sigmoid_focal_loss(logits, truth, -1 if self.alpha is None else self.alpha, self.gamma, reduction="none")


class MSE(LossSpec):
    """Mean squared error of numbers."""

    kinds = ("numbers",)

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, k], [b, k] float -> [b]: the mean over the k numbers"""
        from torch.nn.functional import mse_loss

        return mse_loss(logits, truth, reduction="none").mean(1)


class Huber(LossSpec):
    """Squared for small errors of numbers, straight for large ones: outliers pull less (Huber 1964)."""

    kinds = ("numbers",)

    delta: float = doc("the error at which it becomes straight, in units of train's deviation", gt=0)

    def __call__(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[b, k], [b, k] float -> [b]: the mean over the k numbers"""
        from torch.nn.functional import huber_loss

        return huber_loss(logits, truth, delta=self.delta, reduction="none").mean(1)


class Own(LossSpec):
    """The head's own: some learn from the truth itself (`learning.Learner`)."""

    kinds = ("class", "tags", "numbers", "boxes", "text", "frames")


GROUP = Group(
    "loss",
    {"cross_entropy": CrossEntropy, "focal": Focal, "mse": MSE, "huber": Huber, "own": Own},
    "regraft.losses",
    about="what training minimises",
)


def _balanced(labels: Tensor, classes: int) -> Tensor:
    """[n] int64 or [n, classes] float -> [2, classes]: the weights of pictures without the label, and with it; 0 where there are none."""
    import torch

    n, many = len(labels), labels.is_floating_point()
    having = labels.double().sum(0) if many else torch.bincount(labels, minlength=classes).double()  # [classes]
    counts = torch.stack([n - having, having])
    parts = 2 if many else int((having > 0).sum())  # between how many the pictures are shared out
    return torch.where(counts > 0, n / (parts * counts.clamp(min=1)), 0.0).float()
