"""What sounds at each step: minus the log-likelihood of a step, and how many of its notes are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft.tasks.spec import HALF, TaskSpec, of_mean_odds

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units

SILENCE = "-"


class Frames(TaskSpec):
    """Yes or no for each output at each step: `nll` in nats for each step, less is better, `frame_accuracy` (Bay et al. 2009) of
    what is likelier than not, and `expected_frame_accuracy` of what is drawn."""

    KIND = "frames"
    METRICS = ("nll", "frame_accuracy", "expected_frame_accuracy")
    brings: ClassVar = {"head": "frames", "loss": "own"}

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from regraft.tasks.frame_metrics import ExpectedFrameAccuracy, FrameAccuracy, FrameNLL

        return {"nll": FrameNLL(), "frame_accuracy": FrameAccuracy(), "expected_frame_accuracy": ExpectedFrameAccuracy()}

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        """[n, T, P], [n, T, P + 1] as they are: a probability of 1 has no logarithm to be told from another's"""
        return logits, truth

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def within(self, scores: Tensor, truth: Tensor) -> Tensor:
        """[n, T, P], [n, T, P + 1] -> the same with NaN where a sequence has ended"""
        return scores.masked_fill(truth[..., -1:] <= 0, float("nan"))

    def averaged(self, logits: Tensor) -> Tensor:
        return of_mean_odds(logits)

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        """The steps of each sequence, one word each: C4+E4, or - where nothing sounds; [n, T, P], and what is NaN is no step"""
        return [_words((piece[~piece[:, :1].isnan().any(1)] >= HALF).tolist(), names) for piece in scores]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        """The same of [n, T, P + 1], without what was padded."""
        return [_words(piece[piece[:, -1] > 0, :-1].tolist(), names) for piece in truth]


def _words(piece: list[list[float]], names: list[str]) -> str:
    return " ".join("+".join(name for name, sounds in zip(names, step, strict=True) if sounds) or SILENCE for step in piece)
