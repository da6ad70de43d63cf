"""Classification as a Lightning module: the part of a chain above the boundary, trained on shares of global batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from regraft import freeze, streams
from regraft.batches import Batch
from regraft.optim import parameter_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from regraft.chain import Chain
    from regraft.freeze import Phase
    from regraft.losses import LossSpec
    from regraft.optim import OptimizerSpec
    from regraft.schedules import Schedule


class ClassifyModule(pl.LightningModule):
    """One phase of one run.

    Every rank's loss is the sum over its rows, scaled so that what DDP averages and accumulation adds up is the mean over the
    global batch, whatever its size.
    """

    def __init__(
        self,
        chain: Chain,
        phase: Phase,
        *,
        loss: LossSpec,
        optimizer: OptimizerSpec,
        schedule: Schedule,
        classes: int,
        seed: int,
        steps: int,
        changing: Iterable[str],
        cached: bool,
        dtype: torch.dtype,
    ) -> None:
        """`steps`: optimizer steps of the phase. `changing`: names in the chain's state dict that checkpoints hold. `cached`: batches
        hold the tensors that enter the phase's boundary, not pictures. `dtype`: what is frozen is computed in, cached or live."""
        super().__init__()
        self.chain, self.phase = chain, phase
        self._loss, self._optimizer, self._schedule = loss, optimizer, schedule
        self._seed, self._steps, self._cached, self._frozen_dtype = seed, steps, cached, dtype
        self._changing = frozenset(changing)
        self.strict_loading = False  # checkpoints hold what may change; the rest is the chain's as it was built
        splits = ("train", "val")
        losses = {f"{split}/loss": MeanMetric() for split in splits}
        accuracies = {f"{split}/accuracy": MulticlassAccuracy(classes, average="micro") for split in splits}
        self.measures: Mapping[str, Metric] = torch.nn.ModuleDict({**losses, **accuracies})  # type: ignore[assignment]
        freeze.gradients(chain, phase)
        self.train()

    def train(self, mode: bool = True) -> ClassifyModule:
        """What is frozen stays in eval mode, whoever asks for training mode."""
        super().train(mode)
        if mode:
            freeze.modes(self.chain, self.phase)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """uint8 pictures [b, c, h, w], or what enters the boundary [b, ...] -> logits [b, classes]"""
        boundary = self.phase.boundary
        if not self._cached:
            x = self.chain.prepare(x)
            if boundary == self.chain.stages[0]:
                return self.chain(x)
            x = frozen(self.chain, x, boundary, self._frozen_dtype)
        return self.chain(x.float(), start=boundary)  # autocast decides what it is computed in

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        share = batch.share
        streams.place(self.chain, (self._seed, "dropout", share.epoch, share.step), share.size, share.row)
        idle = not share.weight.any()
        # a library's own dropout and stochastic depth draw from torch's stream, which can only be started afresh for each share
        key = (self._seed, "library", share.epoch, share.step, int(share.row[0]))
        with freeze.lone(self.chain, len(batch.y), share.size, idle), streams.seeded(*key):
            total = self._measure("train", batch)
        # DDP divides by the world, Lightning by the accumulated micro-batches
        return total * (self.trainer.world_size * self.trainer.accumulate_grad_batches / share.size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def _measure(self, split: str, batch: Batch) -> Tensor:
        """The sum of the losses of the rows that count; they enter the split's metrics."""
        logits = self(batch.x)  # [b, classes]
        weight = batch.share.weight.to(logits.device)  # [b]
        losses = self._loss(logits.float(), batch.y)  # [b]
        real = weight > 0
        if real.any():
            self.measures[f"{split}/loss"].update(losses[real].detach())
            self.measures[f"{split}/accuracy"].update(logits[real].detach(), batch.y[real])
        return (losses * weight).sum()

    def results(self, split: str) -> dict[str, float]:
        """The epoch's metrics over the whole split, on every rank; starts the next epoch's."""
        mine = {name: measure for name, measure in self.measures.items() if name.startswith(f"{split}/")}
        found = {name: float(measure.compute()) for name, measure in mine.items()}
        for measure in mine.values():
            measure.reset()
        return found

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.chain, self._optimizer.lr * self.phase.lr, self._optimizer.weight_decay)
        optimizer: Optimizer = self._optimizer.build(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule.factor(self._steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def changed(self) -> dict[str, Tensor]:
        """Copies, in memory, of the tensors that may have changed since the start, by their names in the chain."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.chain.state_dict().items() if name in self._changing}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"chain.{name}": tensor for name, tensor in self.changed().items()}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        missing = {f"chain.{name}" for name in self._changing} - set(checkpoint["state_dict"])
        if missing:
            raise KeyError(f"the checkpoint lacks {sorted(missing)[0]} and {len(missing) - 1} more")


@torch.no_grad()
def frozen(chain: Chain, x: Tensor, boundary: str, dtype: torch.dtype) -> Tensor:
    """Prepared pictures -> what enters the boundary, in `dtype`; the same whether it is stored or used at once."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return chain(x, stop=boundary).to(dtype)
