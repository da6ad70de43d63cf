"""What an epoch of many heads comes to: each head's loss and metrics, summed up as its batches go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from regraft import measures

if TYPE_CHECKING:
    from regraft.engine import Engine


class Tally:
    """Loss, the task's first metric and the monitored one, for h runs of the same task, data and units."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        first = engines[0]
        self.task, self.units, self.outputs = first.settings.task, first.units, len(first.source.classes)
        self.monitors = {engine.settings.monitor for engine in engines}
        self.heads = len(engines)
        losses: dict[str, list[int]] = {}
        for i, engine in enumerate(engines):
            losses.setdefault(repr(engine.settings.loss), []).append(i)
        self.losses = [(engines[own[0]].loss, torch.tensor(own)) for own in losses.values()]  # each loss with the heads that have it
        self.counts = self.task.KIND == "class"  # whether accuracy can be counted for all heads at once
        self.start("train")

    def start(self, split: str) -> None:
        """Forget what was added, and go on with a split."""
        self.split, self.rows = split, 0
        self.sums = torch.zeros(self.heads, dtype=torch.float64)
        self.right = torch.zeros(self.heads, dtype=torch.int64)
        wanted = {self.task.METRICS[0]} | {monitor.partition("/")[2] for monitor in self.monitors if monitor.startswith(f"{split}/")}
        wanted -= {"loss", "accuracy"} if self.counts else {"loss"}
        every = self.task.meters(self.outputs) if wanted else {}
        self.meters: list[dict[str, Metric]] = [
            {name: meter.clone() for name, meter in every.items() if name in wanted} for _ in range(self.heads if wanted else 0)
        ]

    def add(self, logits: Tensor, truth: Tensor) -> Tensor:
        """[h, b, k] logits, [h or 1, b, ...] truth -> losses [h, b]"""
        truth = truth.expand(len(logits), *truth.shape[1:])
        target = self.units.within(truth) if self.units else truth
        if len(self.losses) == 1:
            losses = self.losses[0][0](logits.flatten(0, 1), target.flatten(0, 1)).unflatten(0, logits.shape[:2])
        else:
            losses = logits.new_empty(logits.shape[:2])
            for loss, own in self.losses:
                losses[own] = loss(logits[own].flatten(0, 1), target[own].flatten(0, 1)).unflatten(0, (len(own), logits.shape[1]))
        with torch.no_grad():
            self.sums += losses.double().sum(1).cpu()
            self.rows += logits.shape[1]
            if self.counts:
                self.right += (logits.argmax(-1) == truth).sum(1).cpu()
            for head, meters in enumerate(self.meters):
                scores, true = self.task.judged(logits[head].detach(), truth[head], self.units)
                for meter in meters.values():
                    meter.to(scores.device).update(scores, true)
        return losses

    def plain(self) -> list[dict[str, Any]]:
        """What was added so far, for each head: plain numbers and tensors, in memory."""
        return [
            {
                "rows": self.rows,
                "sum": float(self.sums[head]),
                "right": int(self.right[head]),
                "meters": {name: measures.plain(meter) for name, meter in (self.meters[head] if self.meters else {}).items()},
            }
            for head in range(self.heads)
        ]

    def put(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Go on with what `plain` has told."""
        self.rows = told[0]["rows"]
        self.sums = torch.tensor([each["sum"] for each in told], dtype=torch.float64)
        self.right = torch.tensor([each["right"] for each in told])
        for meters, each in zip(self.meters, told, strict=False):  # no meters where none is wanted
            for name, meter in meters.items():
                measures.put(meter, each["meters"][name])

    def results(self) -> dict[str, Tensor]:
        """{"train/loss": [h], ...}: over all that was added since `start`."""
        found = {f"{self.split}/loss": self.sums / self.rows}
        if self.counts:
            found[f"{self.split}/accuracy"] = self.right / self.rows
        for name in self.meters[0] if self.meters else ():
            found[f"{self.split}/{name}"] = torch.tensor([float(meters[name].compute()) for meters in self.meters])
        return found
