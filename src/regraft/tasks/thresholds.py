"""From which score on a tag is said to be there: the threshold that gives each tag its highest F1 on val."""

from __future__ import annotations

import torch
from torch import Tensor


def thresholds(scores: Tensor, truth: Tensor) -> Tensor:
    """Scores 0..1 [n, k] and truth (0 or 1) [n, k] -> [k]: a tag is there where its score is at least its threshold.

    Each lies in the middle between the scores that it parts; of equally good ones the highest is taken (Lipton et al. 2014 show why none
    can be fixed beforehand). A tag that no picture has keeps one half.
    """
    n, k = scores.shape
    if not n:
        return scores.new_full((k,), 0.5)
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
    return torch.where(right[-1] > 0, middle, middle.new_full((), 0.5))
