"""The task group's catalogue: what is learnt, and how it is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.registry import Group
from regraft.tasks.caption import Caption
from regraft.tasks.detect import Detect
from regraft.tasks.frames import Frames
from regraft.tasks.ocr import Ocr
from regraft.tasks.spec import LOWER, TaskSpec
from regraft.tasks.tag import Tag

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units


class Classify(TaskSpec):
    """One label for each picture: accuracy, top-5, macro F1, AUROC, calibration error (15 bins: Guo et al. 2017)."""

    KIND = "class"
    METRICS = ("accuracy", "top5_accuracy", "macro_f1", "auroc", "calibration_error")

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from torchmetrics import classification as of

        from regraft.tasks.metrics import MeanClassAUROC

        found: dict[str, Metric] = {
            "accuracy": of.MulticlassAccuracy(outputs, average="micro"),
            "macro_f1": of.MulticlassF1Score(outputs, average="macro"),
            "auroc": MeanClassAUROC(outputs),
            "calibration_error": of.MulticlassCalibrationError(outputs, n_bins=15),
        }
        return found | ({"top5_accuracy": of.MulticlassAccuracy(outputs, average="micro", top_k=5)} if outputs > 5 else {})

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def averaged(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def details(self, logits: Tensor, truth: Tensor, names: list[str], thresholds: Sequence[float]) -> dict[str, dict[str, float]]:
        """The part of each class's pictures that is right, and how many there are; classes that no picture has are left out."""
        right = logits.argmax(-1) == truth
        counts, hits = truth.bincount(minlength=len(names)).tolist(), truth[right].bincount(minlength=len(names)).tolist()
        return {name: {"accuracy": hit / count, "truths": count} for name, count, hit in zip(names, counts, hits, strict=True) if count}

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        return [names[number] for number in scores.argmax(-1).tolist()]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        return [names[number] for number in truth.tolist()]


class Regress(TaskSpec):
    """Numbers for each picture: mean absolute error, root mean squared error, R2; errors of several together are in train's deviations."""

    KIND = "numbers"
    METRICS = ("mae", "rmse", "r2")

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        import torchmetrics as of

        from regraft.tasks.metrics import R2

        return {"mae": of.MeanAbsoluteError(), "rmse": of.MeanSquaredError(squared=False), "r2": R2()}

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        assert units is not None, "numbers are learnt in units"
        return (units.back(logits), truth) if truth.shape[-1] == 1 else (logits, units.within(truth))  # one has units to be told in

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def averaged(self, logits: Tensor) -> Tensor:
        return logits.mean(0)

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        return ["|".join(f"{number:.6g}" for number in row) for row in scores.tolist()]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        return self.answers(truth, names)


GROUP = Group(
    "task",
    {"classify": Classify, "tag": Tag, "regress": Regress, "frames": Frames, "detect": Detect, "caption": Caption, "ocr": Ocr},
    about="what is learnt, and how it is measured",
)

__all__ = ["GROUP", "LOWER", "Classify", "Regress", "Tag", "TaskSpec"]
