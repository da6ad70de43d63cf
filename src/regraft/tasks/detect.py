"""The task of finding boxes: COCO's average precision, and boxes as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from regraft.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units

DIGITS = 4  # of parts and scores that are told


class Detect(TaskSpec):
    """Boxes and their classes: mean average precision over overlaps of .5 to .95, at .5, and at .75 (Lin et al. 2014, COCO).

    Answers are [n, 100, 6] (x0, y0, x1, y1 in parts of the picture, score, class; score 0: no box), truths [n, M, 5] (class or -1, box).
    """

    KIND = "boxes"
    METRICS = ("map", "ap50", "ap75")
    brings: ClassVar[Mapping[str, str]] = {"model": "rcnn", "head": "rcnn", "loss": "own", "data.fit": "squash"}

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from regraft.tasks.precision import BoxPrecision

        return {"map": BoxPrecision(None), "ap50": BoxPrecision(0.5), "ap75": BoxPrecision(0.75)}

    def details(self, logits: Tensor, truth: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> dict[str, dict[str, float]]:
        """Each metric for each class of which there is a box, and how many there are."""
        from regraft.tasks.precision import OVERLAPS, average_precision

        found: dict[str, dict[str, float]] = {name: {} for name in names}
        for metric, overlap in OVERLAPS.items():
            for number, value in average_precision(logits, truth, overlap)[1].items():
                found[names[number]][metric] = value
        counts = truth[..., 0][truth[..., 0] >= 0].long().bincount(minlength=len(names)).tolist()
        return {name: found[name] | {"truths": count} for name, count in zip(names, counts, strict=True) if found[name]}

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        return logits, truth

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def averaged(self, logits: Tensor) -> Tensor:
        return logits[0]  # boxes in a turned view are not where they are in the picture: only the picture as it is counts

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        """Json: a list of class, box (x0, y0, x1, y1 in parts) and score for each picture, the surest first."""
        return [
            _text([_told(names, row[5], row[:4]) | {"score": _short(row[4])} for row in rows if row[4] > 0]) for rows in scores.tolist()
        ]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        """Json: a list of class and box for each picture."""
        return [_text([_told(names, row[0], row[1:]) for row in rows if row[0] >= 0]) for rows in truth.tolist()]


def _told(names: list[str], number: float, box: list[float]) -> dict[str, Any]:
    return {"class": names[int(number)], "box": [_short(side) for side in box]}


def _short(number: float) -> float:
    return round(number, DIGITS)


def _text(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False)
