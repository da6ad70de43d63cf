"""One phase as a Lightning module: the part of a chain above the boundary, trained on shares of global batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from regraft import freezing, learning, measures, streams
from regraft.batches import Batch
from regraft.layout import HEAD
from regraft.optim import parameter_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from regraft.chain import Chain
    from regraft.freeze import Phase
    from regraft.optim import OptimizerSpec
    from regraft.schedules import Schedule
    from regraft.tasks import TaskSpec
    from regraft.tasks.units import Units


class PhaseModule(pl.LightningModule):
    """One phase of one run.

    Every rank's loss is the sum over its rows, scaled so that what DDP averages and accumulation adds up is the mean over the
    global batch, whatever its size.
    """

    def __init__(
        self,
        chain: Chain,
        phase: Phase,
        *,
        task: TaskSpec,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: OptimizerSpec,
        schedule: Schedule,
        outputs: int,
        monitor: str,
        seed: int,
        steps: int,
        epoch_steps: int,
        changing: Iterable[str],
        dtype: torch.dtype,
        learns: bool = False,
        units: Units | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`monitor`: the metric (beside the loss and the task's first) that each epoch measures. `steps`: optimizer steps of the phase,
        `epoch_steps` those of a whole epoch. `changing`: names in the chain's state dict that checkpoints hold. `dtype`: what is frozen is
        computed in, cached or live. `learns`: the head has a loss of its own, in place of `loss`. `units`: of the numbers that
        are learnt. `start`: the weights before all training, by their names in the chain."""
        super().__init__()
        self.chain, self.phase, self.task = chain, phase, task
        self._loss, self._optimizer, self._schedule = loss, optimizer, schedule
        self._seed, self._steps, self._epoch_steps, self._frozen_dtype = seed, steps, epoch_steps, dtype
        self._units, self._start = units, dict(start or {})
        self._changing = frozenset(changing)
        self.strict_loading = False  # checkpoints hold what may change; the rest is the chain's as it was built
        self._learns = learns and phase.objective == "task"
        found: dict[str, Metric] = {}
        for split in ("train", "val"):
            every = task.meters(outputs)
            wanted = [name for name in every if name == task.METRICS[0] or f"{split}/{name}" == monitor]
            if phase.objective == "stage" or (split == "train" and learns):  # nobody is asked for an answer
                wanted = []
            found |= {f"{split}/loss": MeanMetric()} | {f"{split}/{name}": every[name] for name in wanted}
        self.measures: MutableMapping[str, Metric] = torch.nn.ModuleDict(found)  # type: ignore[assignment]
        # what keeps lists is gathered from every rank: one without rows takes part with none of them
        self._listed = {name for name, each in found.items() if any(isinstance(state, list) for state in each.metric_state.values())}
        freezing.gradients(chain, phase)
        self.train()

    def train(self, mode: bool = True) -> PhaseModule:
        """What is frozen stays in eval mode, whoever asks for training mode."""
        super().train(mode)
        if mode:
            freezing.modes(self.chain, self.phase)
        return self

    def forward(self, batch: Batch, stop: str | None = None) -> Tensor:
        """Pictures, or what enters the boundary -> logits [b, outputs]; or what enters the stage at which to `stop`."""
        boundary, x = self.phase.boundary, batch.x
        if not batch.cached:
            x = self.chain.prepare(x)
            if boundary == self.chain.stages[0]:
                return self.chain(x, stop=stop)
            x = frozen(self.chain, x, boundary, self._frozen_dtype)
        return self.chain(x.float(), start=boundary, stop=stop)  # autocast decides what it is computed in

    def on_fit_start(self) -> None:
        self._start = {name: tensor.to(self.device) for name, tensor in self._start.items()}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The share stays where it is: the host reads it in each step, and must not wait for the device."""
        moved = {name: move_data_to_device(getattr(batch, name), device) for name in ("x", "y", "other", "own")}
        return batch._replace(**moved)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        share = batch.share
        streams.place(self.chain, (self._seed, "dropout", share.epoch, share.step), share.size, share.row)
        idle = not share.weight.any()
        # a library's own dropout and stochastic depth draw from torch's stream, which can only be started afresh for each share
        key = (self._seed, "library", share.epoch, share.step, int(share.row[0]))
        with freezing.lone(self.chain, len(batch.y), share.size, idle), streams.seeded(*key):
            losses, logits, more = self._learnt(batch, (self._seed, "sample", share.epoch))
        total = self._measure("train", batch, losses, logits, more)
        for weight, heard in self.chain.heard():  # what auxiliary heads say of the same batch
            total = total + weight * self._losses(heard, batch).sum()
        # DDP divides by the world, Lightning by the accumulated micro-batches
        total = total * (self.trainer.world_size * self.trainer.accumulate_grad_batches / share.size)
        pull = freezing.pull(self.chain, self.phase, self._start)  # the same on every rank and micro-batch: its mean is itself
        return total if pull is None else total + pull

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch, *self._learnt(batch, (self._seed, "sample", "val")))

    def _learnt(self, batch: Batch, key: tuple[int | str, ...]) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """Losses [b], nothing for a stand-in; the answers [b, ...], None where nobody asks for them; and what a stage that trains by itself
        tells of each sample. `key`: of the seeds of what has a loss of its own."""
        if self.phase.objective == "task" and not self._learns:
            logits = self(batch)
            return self._losses(logits, batch), logits, {}
        weight, seeds = batch.share.weight, learning.seeds(key, batch.share.picture)
        if self._learns:
            head: Any = self.chain.head
            x = self(batch, stop=HEAD)
            losses = head.losses(x, batch.y, seeds)
            return losses * weight.to(losses), None if self.training else head(x).float(), {}
        [stage] = self.phase.trains
        module: Any = self.chain.backbone.get_submodule(stage)
        x = self(batch, stop=stage)
        losses = module.losses(x, seeds)
        with torch.no_grad():
            more: Mapping[str, Tensor] = module.measures(x)
        return losses * weight.to(losses), None, more

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """[b], nothing for a stand-in; a mixed row's is shared out between its own truth and its partner's."""
        weight = batch.share.weight.to(logits.device)
        logits, truths = logits.float(), [batch.y] if batch.other is None else [batch.y, batch.other]
        if self._units:
            truths = [self._units.within(truth) for truth in truths]
        losses = self._loss(logits, truths[0])
        if batch.own is not None:
            losses = batch.own * losses + (1 - batch.own) * self._loss(logits, truths[1])
        return losses * weight

    def _measure(self, split: str, batch: Batch, losses: Tensor, logits: Tensor | None, more: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses of the rows that count; they enter the split's metrics, and so do the answers."""
        weight = batch.share.weight
        real = slice(None) if weight.all() else (weight > 0).to(losses.device)  # nearly always all rows count
        some, mean = bool(weight.any()), f"{split}/loss"
        for name, each in {mean: losses.detach(), **{f"{split}/{name}": each for name, each in more.items()}}.items():
            measure = self._measure_of(name)
            if some:
                measure.update(each[real])
        if logits is None:
            return losses.sum()
        scores, truth = self.task.judged(logits[real].detach().float(), _heavier(batch)[real], self._units)
        for name, measure in self.measures.items():
            if name.startswith(f"{split}/") and name != mean and (some or name in self._listed):
                measure.update(scores, truth)
        return losses.sum()

    def _measure_of(self, name: str) -> Metric:
        """What a stage tells of its samples is known by name when it tells it first."""
        if name not in self.measures:
            self.measures[name] = MeanMetric().to(self.device)
        return self.measures[name]

    def results(self, split: str) -> dict[str, float]:
        """The epoch's metrics over the whole split, on every rank; starts the next epoch's."""
        mine = {name: measure for name, measure in self.measures.items() if name.startswith(f"{split}/")}
        found = {name: float(measure.compute()) for name, measure in mine.items()}
        for measure in mine.values():
            measure.reset()
        return found

    def measured(self) -> dict[str, Any]:
        """What this rank's metrics of train hold so far in this epoch: plain numbers and tensors, in memory."""
        return {name: measures.plain(measure) for name, measure in self.measures.items() if name.startswith("train/")}

    def resume(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Go on with an epoch's metrics: what `measured` has told of each rank, among which these ranks share it out."""
        for each in told[self.trainer.global_rank :: self.trainer.world_size]:
            for name, kept in each.items():
                measures.put(self._measure_of(name), kept)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.chain, self._optimizer.lr * self.phase.lr, self._optimizer.weight_decay, self.phase)
        scaled = self._trainer is not None and getattr(self._trainer.precision_plugin, "scaler", None) is not None
        optimizer: Optimizer = self._optimizer.build(groups, fused=not scaled)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule.factor(self._steps, self._epoch_steps))
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
        return chain(x, stop=boundary).to(dtype).contiguous()  # as rows of the cache are: what trains must not see how it was laid out


def _heavier(batch: Batch) -> Tensor:
    """The truth of each row; of a mixed one that of the picture it has more of."""
    if batch.other is None or batch.own is None:
        return batch.y
    own = batch.own >= 0.5
    return torch.where(own if batch.y.ndim == 1 else own[:, None], batch.y, batch.other)
