"""What happens at the end of each epoch: metrics are written, the best epoch is kept, a checkpoint is made."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from regraft.judging import Best, Judge
from regraft.record import CHECKPOINT, METRICS, Metrics, RunFolder

if TYPE_CHECKING:
    from regraft.batches import GlobalBatches
    from regraft.ema import EMA
    from regraft.progress import Bar
    from regraft.settings import Settings
    from regraft.tasks.module import PhaseModule


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
        self._saved = time.monotonic()
        self._over = False
        self._bar = bar

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.lr = trainer.optimizers[0].param_groups[-1]["lr"]  # the head's; at the end of an epoch it is the next step's already

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = self.first_epoch + trainer.current_epoch
        found = module.results("train") | (module.results("val") if sum(trainer.num_val_batches) else {})
        self.judge.finite(epoch, found["train/loss"])  # the same on every rank
        if trainer.is_global_zero:
            self.metrics.append(module.phase.name, epoch, trainer.global_step, found | {"lr": self.lr})
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": float(epoch)}, step=epoch)
        if self._bar:
            self._bar.epoch_ended(found.get(self.monitor, math.nan))
        if self.judge.judge(epoch, found, lambda: self._state(module)):
            trainer.should_stop = True
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = time.monotonic() - self._saved >= self.spec.checkpoint_seconds
        if trainer.strategy.broadcast(over or due):  # all ranks save together, or none
            self._save(trainer, over)
        self.batches.set_epoch(trainer.current_epoch + 1)  # Lightning asks for the next epoch's length before it says which epoch it is

    def _state(self, module: PhaseModule) -> dict[str, Tensor]:
        """What may have changed, as it is measured."""
        with self.ema.average.swapped() if self.ema and self.ema.average else nullcontext():
            return module.changed()

    def _save(self, trainer: pl.Trainer, over: bool) -> None:
        self._over = over
        part = self.folder / f".{CHECKPOINT}.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.folder / CHECKPOINT)
        self._saved = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["regraft"] = {
            "phase": self.number,
            "over": self._over,
            "epochs": self.first_epoch + trainer.current_epoch + 1,
            **self.judge.plain(),
        }
