"""How music is judged, step by step: both metrics are sums over all steps of a set, however it was divided into batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from regraft.models.recurrent import step_nll


class FrameNLL(Metric):
    """Minus the log-likelihood of a step in nats, summed over its notes, as the mean over all steps (Boulanger-Lewandowski et al. 2012,
    section 6). NaN where there are no steps."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("steps", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """[n, T, P], [n, T, P + 1]"""
        nll, real = step_nll(logits, truth)
        self.total += nll.sum()
        self.steps += real.sum()

    def compute(self) -> Tensor:
        return self.total / self.steps


class FrameAccuracy(Metric):
    """True positives / (true positives + false positives + false negatives) of the notes of all steps (Bay et al. 2009, section 2.2),
    where a note is said to sound from a probability of 0.5. NaN where no note sounds and none was said to."""

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    either: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("either", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """[n, T, P], [n, T, P + 1]"""
        real = truth[..., -1:] > 0
        said, true = (logits >= 0) & real, (truth[..., :-1] > 0) & real
        self.hits += (said & true).sum()
        self.either += (said | true).sum()

    def compute(self) -> Tensor:
        return self.hits / self.either


class ExpectedFrameAccuracy(Metric):
    """The same of notes that are drawn by their probabilities, as the literature on chorales tells it (Boulanger-Lewandowski et al. 2012,
    section 6): the expected true positives / the expected true positives, false positives and false negatives, over all steps."""

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    either: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("either", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """[n, T, P], [n, T, P + 1]"""
        real = truth[..., -1:] > 0
        p, true = logits.sigmoid() * real, truth[..., :-1] * real
        both = (p * true).sum()
        self.hits += both
        self.either += p.sum() + true.sum() - both

    def compute(self) -> Tensor:
        return self.hits / self.either
