"""From which score on a tag is said to be there: the threshold that gives each tag its highest F1 on val."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_accuracy, binary_f1_score, multilabel_f1_score
from torchmetrics.utilities.data import dim_zero_cat

from regraft.tasks.spec import HALF


def thresholds(scores: Tensor, truth: Tensor) -> Tensor:
    """Scores 0..1 [n, k] and truth (0 or 1) [n, k] -> [k]: a tag is there where its score is at least its threshold.

    Each lies in the middle between the scores that it parts; of equally good ones the highest is taken (Lipton et al. 2014 show why none
    can be fixed beforehand). A tag that no picture has keeps one half.
    """
    n, k = scores.shape
    if not n:
        return scores.new_full((k,), HALF)
    ordered, order = scores.sort(dim=0, descending=True, stable=True)
    right = truth.to(torch.float64).gather(0, order).cumsum(0)  # [n, k] true positives, if the first 1, 2, ... are said
    said = torch.arange(1, n + 1, dtype=torch.float64, device=scores.device)[:, None]
    f1 = 2 * right / (said + right[-1])
    following = torch.cat([ordered[1:], ordered.new_zeros(1, k)])
    f1[:-1][ordered[:-1] == ordered[1:]] = -1  # a threshold can't part equal scores
    best = f1.argmax(0, keepdim=True)
    middle = ((ordered + following) / 2).gather(0, best)[0]
    above = ordered.gather(0, best)[0]
    middle = torch.where(middle > following.gather(0, best)[0], middle, above)  # of neighbouring floats the middle may be the lower one
    return torch.where(right[-1] > 0, middle, middle.new_full((), HALF))


class SaidTags(Metric):
    """How right it is what is said of tags, at thresholds that were chosen; without them at those that suit best what is measured itself,
    as val in training. NaN for no pictures."""

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    truth: list[Tensor]

    def __init__(self, measure: str, thresholds: Sequence[float] | None = None) -> None:
        """`measure`: micro_f1, accuracy (over all pictures and tags), or macro_f1 (the mean over tags; 0 for one that is neither there nor
        said, as scikit-learn has it)."""
        super().__init__()
        self.measure, self.thresholds = measure, thresholds
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, truth: Tensor) -> None:
        """[b, k] 0..1 and [b, k] 0 or 1, of no rows too"""
        self.scores.append(scores)
        self.truth.append(truth)

    def compute(self) -> Tensor:
        if not sum(map(len, self.truth)):
            return torch.tensor(torch.nan)
        scores, truth = dim_zero_cat(self.scores), dim_zero_cat(self.truth).long()
        chosen = thresholds(scores, truth) if self.thresholds is None else scores.new_tensor(self.thresholds)
        said, k = (scores >= chosen).long(), truth.shape[1]
        if self.measure == "macro_f1" and k > 1:
            return multilabel_f1_score(said, truth, k, average="macro")
        return (binary_accuracy if self.measure == "accuracy" else binary_f1_score)(said.flatten(), truth.flatten())
