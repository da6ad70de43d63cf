"""What happens at the end of each epoch: metrics are written, the best epoch is kept; and when a checkpoint is made, within one too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor
from torch.distributed import all_gather_object

from regraft import checkpoints, ranks, stopping
from regraft.judging import Best, Judge
from regraft.pruning import Watched
from regraft.record import CHECKPOINT, METRICS, Metrics, RunFolder

if TYPE_CHECKING:
    from regraft.batches import Batch, GlobalBatches
    from regraft.ema import EMA
    from regraft.progress import Bar
    from regraft.settings import Settings
    from regraft.tasks.module import PhaseModule

# steps after which several ranks save: each hears of it in time, since the gradients keep them within a step of each other; a GPU's host
# may have queued more of them
AHEAD, AHEAD_GPU = 2, 64


class Epochs(Checkpoint):
    """One phase's epochs."""

    def __init__(
        self, folder: RunFolder, settings: Settings, number: int, batches: GlobalBatches, best: Best, ema: EMA | None, bar: Bar | None
    ) -> None:
        self.folder, self.spec, self.number, self.batches = folder, settings.trainer, number, batches
        self.first_epoch, self.monitor, self.ema = batches.first_epoch, settings.monitor, ema
        self.metrics = Metrics(folder / METRICS)
        self.judge = Judge(settings, best)
        self.lr = math.nan
        self.watched = Watched(folder, settings)
        self._due, self._saves = checkpoints.Due(self.spec.checkpoint_seconds), 0
        self._step = 0  # the last one, of the phase
        self._over = False
        self._within = 0  # steps of the epoch, where a checkpoint is made within it
        self._begun: Sequence[Any] = ()  # what each rank had measured of the epoch within which the run goes on
        self._bar, self._ahead = bar, AHEAD if settings.hardware.accelerator() == "cpu" else AHEAD_GPU

    def resume(self, told: Mapping[str, Any]) -> None:
        """Go on where a checkpoint's "regraft" says."""
        self.judge.resume(told)
        self.batches.set_epoch(told["epochs"] - self.first_epoch)
        self._begun = told.get("measures", ())

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        module.resume(self._begun)

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.lr = trainer.optimizers[0].param_groups[-1]["lr"]  # the head's; at the end of an epoch it is the next step's already

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # a micro-batch
            return
        self._step = trainer.global_step
        if trainer.is_last_batch:  # validation comes first
            return
        at, told = self._agreed()
        if at == self._step:
            self._save(trainer, within=batch.share.step + 1)
            if told:
                stopping.listener.stop(f"and saved after step {batch.share.step + 1} of epoch {batch.share.epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = self.first_epoch + trainer.current_epoch
        found = module.results("train") | (module.results("val") if sum(trainer.num_val_batches) else {})
        self.judge.finite(epoch, found["train/loss"])  # the same on every rank
        if trainer.is_global_zero:
            self.metrics.append(module.phase.name, epoch, trainer.global_step, found | {"lr": self.lr})
            self.watched.report(epoch + 1, found)
        for logger in trainer.loggers:
            logger.log_metrics({**found, "lr": self.lr, "epoch": float(epoch)}, step=epoch)
        if self._bar:
            self._bar.epoch_ended(found.get(self.monitor, math.nan))
        if module.phase.objective == "task" and self.judge.judge(epoch, found, lambda: self._state(module)):
            trainer.should_stop = True
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = trainer.is_global_zero and self._due.now()
        any_rank = trainer.strategy.reduce_boolean_decision  # all ranks save together, or none
        told = any_rank(stopping.listener.told is not None, all=False)
        if any_rank(over or due or told, all=False):
            self._save(trainer, over)
        if told:
            stopping.listener.stop(f"and saved after epoch {epoch}")
        if self.watched.active and not over and any_rank(trainer.is_global_zero and self.watched.hopeless(), all=False):
            self.watched.end()
            trainer.should_stop = True
        self.batches.set_epoch(trainer.current_epoch + 1)  # Lightning asks for the next epoch's length before it says which epoch it is

    def _agreed(self) -> tuple[int, bool]:
        """After which step of the phase the next checkpoint within an epoch is made, 0 where there is none in sight, and whether the run
        then stops: the same on all ranks. One of them is told, or finds that it is time; the others hear of it after their next step."""
        here, told = ranks.here(), stopping.listener.told is not None
        due = here.rank == 0 and self._due.within()
        mine = [self._step + (self._ahead if here.world > 1 else 0), told] if told or due else None
        at, told = here.first(f"checkpoint {self.number} {self._saves}", mine) or (0, False)
        return at, told

    def _state(self, module: PhaseModule) -> dict[str, Tensor]:
        """What may have changed, as it is measured."""
        with self.ema.average.swapped() if self.ema and self.ema.average else nullcontext():
            return module.changed()

    def _save(self, trainer: pl.Trainer, over: bool = False, within: int = 0) -> None:
        self._over, self._within = over, within
        with self._due.saving():
            trainer.save_checkpoint(self.folder / CHECKPOINT)  # by `checkpoints.Checkpoints`
        self._saves += 1

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["regraft"] = {
            "phase": self.number,
            "over": self._over,
            "epochs": self.first_epoch + trainer.current_epoch + (not self._within),
            "step": self._within,
            "accumulate": trainer.accumulate_grad_batches,
            "measures": self._measures(trainer, module) if self._within else [],
            **self.judge.plain(),
        }

    @staticmethod
    def _measures(trainer: pl.Trainer, module: PhaseModule) -> list[Any]:
        """What each rank has measured of the epoch so far."""
        if trainer.world_size == 1:
            return [module.measured()]
        found: list[Any] = [None] * trainer.world_size
        all_gather_object(found, module.measured())
        return found
