"""COCO's average precision over boxes in tensors of one shape: torchmetrics does the matching, and asks pycocotools."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from regraft.errors import Problem, UserError

OVERLAPS: dict[str, float | None] = {"map": None, "ap50": 0.5, "ap75": 0.75}  # metric -> intersection over union; None: .5 to .95
SIDE = 1000.0  # parts become these units: no box is so small that it is rounded away


class BoxPrecision(Metric):
    """The mean over the classes of which there is a box; NaN where there is none.

    Holds plain tensors, so that ranks and checkpoints share them as those of any other metric.
    """

    full_state_update = False
    found: list[Tensor]
    truth: list[Tensor]

    def __init__(self, overlap: float | None) -> None:
        """`overlap`: intersection over union from which a box counts as found; None: the mean over .5, .55, ..., .95."""
        super().__init__()
        self.overlap = overlap
        self.add_state("found", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, answers: Tensor, truth: Tensor) -> None:
        """[n, k, 6] and [n, M, 5]; of no pictures too: a rank that has none still tells the others the shape"""
        self.found.append(answers.float())
        self.truth.append(truth.float())

    def compute(self) -> Tensor:
        if not sum(map(len, self.found)):
            return torch.tensor(torch.nan)
        return torch.tensor(average_precision(dim_zero_cat(self.found), dim_zero_cat(self.truth), self.overlap)[0])


def average_precision(answers: Tensor, truth: Tensor, overlap: float | None) -> tuple[float, dict[int, float]]:
    """[n, k, 6] and [n, M, 5] -> the mean over classes, and each class's; classes of which there is no box have none.

    At most 100 boxes of a picture count, the surest. Boxes are measured in parts, whatever the picture's size: COCO's small, medium and
    large, which are px, are not told. Raises UserError where pycocotools is not installed.
    """
    if find_spec("pycocotools") is None:
        raise UserError(Problem("task.name", "detect", "average precision needs pycocotools; pip install 'regraft[detection]'"))
    from torchmetrics.detection import MeanAveragePrecision

    overlaps = None if overlap is None else [overlap]
    meter = MeanAveragePrecision(iou_thresholds=overlaps, class_metrics=True, sync_on_compute=False)  # the answers are all ranks' already
    meter.warn_on_many_detections = False
    answers, truth = answers.cpu().float(), truth.cpu().float()
    meter.update([_found(each) for each in answers], [_true(each) for each in truth])
    told = meter.compute()
    each = zip(told["classes"].reshape(-1).tolist(), told["map_per_class"].reshape(-1).tolist(), strict=False)
    classes = {int(number): value for number, value in each if value >= 0}  # -1: no box of this class
    return (sum(classes.values()) / len(classes) if classes else torch.nan), classes


def _found(rows: Tensor) -> dict[str, Tensor]:
    there = rows[rows[:, 4] > 0]
    return {"boxes": there[:, :4] * SIDE, "scores": there[:, 4], "labels": there[:, 5].long()}


def _true(rows: Tensor) -> dict[str, Tensor]:
    there = rows[rows[:, 0] >= 0]
    return {"boxes": there[:, 1:] * SIDE, "labels": there[:, 0].long()}
