"""The task of tags: any number of labels for each picture, each of which is said from a threshold of its own on, chosen on val."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.tasks.spec import HALF, TaskSpec, of_mean_odds

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units


class Tag(TaskSpec):
    """Any number of labels for each picture: mean average precision and AUROC of the scores; micro and macro F1, and accuracy over all
    labels, of what is said, with each label's threshold as val has chosen it."""

    KIND = "tags"
    METRICS = ("map", "micro_f1", "macro_f1", "accuracy", "auroc")

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from torchmetrics import classification as of

        from regraft.tasks.metrics import MeanAveragePrecision, MeanTagAUROC
        from regraft.tasks.thresholds import SaidTags

        said: dict[str, Metric] = {name: SaidTags(name, thresholds) for name in ("micro_f1", "macro_f1", "accuracy")}
        if outputs == 1:
            return {"map": of.BinaryAveragePrecision(), **said, "auroc": of.BinaryAUROC()}
        return {"map": MeanAveragePrecision(outputs), **said, "auroc": MeanTagAUROC(outputs)}

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        """In float32, as answers are told: a score that is measured lies on the same side of a threshold as the one that is told."""
        return self.scores(logits.float()), truth.long()

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def averaged(self, logits: Tensor) -> Tensor:
        return of_mean_odds(logits)

    def thresholds(self, logits: Tensor, truth: Tensor) -> list[float]:
        from regraft.tasks.thresholds import thresholds

        return [float(value) for value in thresholds(self.scores(logits), truth)]

    def unsure(self, truth: Tensor, names: Sequence[str]) -> list[str]:
        if not len(truth):
            return list(names)
        return [name for name, held in zip(names, truth.bool().any(0).tolist(), strict=True) if not held]

    def details(self, logits: Tensor, truth: Tensor, names: list[str], thresholds: Sequence[float]) -> dict[str, dict[str, float]]:
        """Each tag's average precision (none where no picture has it), F1 and threshold, and how many pictures have it."""
        from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

        found: dict[str, dict[str, float]] = {}
        for name, scores, held, threshold in zip(names, self.scores(logits).T, truth.long().T, thresholds, strict=True):
            there = int(held.sum())
            precision = {"map": float(binary_average_precision(scores, held))} if there else {}
            found[name] = {
                **precision,
                "f1": float(binary_f1_score((scores >= threshold).long(), held)),
                "threshold": threshold,
                "truths": there,
            }
        return found

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        """The tags whose score reaches their threshold, parted by |; without thresholds one half."""
        return self.truths(scores >= scores.new_tensor(thresholds or [HALF] * len(names)), names)

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        return ["|".join(name for name, holds in zip(names, row, strict=True) if holds) for row in truth.tolist()]
