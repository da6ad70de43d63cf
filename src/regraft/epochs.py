"""What happens at the end of each epoch: metrics are written, the best epoch is kept, a checkpoint is made."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from regraft.errors import Problem, UserError
from regraft.record import CHECKPOINT, METRICS, Metrics, RunFolder
from regraft.tasks import LOWER

if TYPE_CHECKING:
    from regraft.batches import GlobalBatches
    from regraft.ema import EMA
    from regraft.progress import Bar
    from regraft.settings import Settings
    from regraft.tasks.module import PhaseModule


@dataclass
class Best:
    """The epoch whose weights are kept."""

    epoch: int = -1
    value: float = float("nan")
    state: dict[str, Tensor] = field(default_factory=dict)


class Epochs(Checkpoint):
    """One phase's epochs."""

    def __init__(
        self, folder: RunFolder, settings: Settings, number: int, batches: GlobalBatches, best: Best, ema: EMA | None, bar: Bar | None
    ) -> None:
        self.folder, self.spec, self.number, self.batches, self.best = folder, settings.trainer, number, batches, best
        self.first_epoch, self.monitor, self.ema = batches.first_epoch, settings.monitor, ema
        self.metrics = Metrics(folder / METRICS)
        self.waited = 0  # epochs since trainer.monitor was better than `peak`
        self.peak: float | None = None
        self.lr, self.rate = math.nan, settings.optimizer.lr
        self._saved = time.monotonic()
        self._over = False
        self._bar = bar

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.lr = trainer.optimizers[0].param_groups[-1]["lr"]  # the head's; at the end of an epoch it is the next step's already

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = self.first_epoch + trainer.current_epoch
        found = module.results("train") | (module.results("val") if sum(trainer.num_val_batches) else {})
        if not math.isfinite(found["train/loss"]):  # the same on every rank
            remedy = f"training has diverged: in epoch {epoch} the loss is no finite number; a lower rate would work, or trainer.clip=1"
            raise UserError(Problem("optimizer.lr", self.rate, remedy))
        if trainer.is_global_zero:
            self.metrics.append(module.phase.name, epoch, trainer.global_step, found | {"lr": self.lr})
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": float(epoch)}, step=epoch)
        value = found.get(self.monitor, math.nan)  # no val pictures: the last epoch is kept
        if self._bar:
            self._bar.epoch_ended(value)
        self._judge(epoch, value, module)
        if self.spec.patience is not None and self.waited >= self.spec.patience:
            trainer.should_stop = True
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = time.monotonic() - self._saved >= self.spec.checkpoint_seconds
        if trainer.strategy.broadcast(over or due):  # all ranks save together, or none
            self._save(trainer, over)
        self.batches.set_epoch(trainer.current_epoch + 1)  # Lightning asks for the next epoch's length before it says which epoch it is

    def _judge(self, epoch: int, value: float, module: PhaseModule) -> None:
        lower = self.monitor.partition("/")[2] in LOWER
        if self.peak is None or math.isnan(self.peak) or (value < self.peak if lower else value > self.peak):
            self.peak, self.waited = value, 0
        else:
            self.waited += 1
        better = self.best.epoch < 0 or math.isnan(self.best.value) or (value < self.best.value if lower else value > self.best.value)
        if better or self.spec.keep == "last":
            with self.ema.average.swapped() if self.ema and self.ema.average else nullcontext():
                self.best.epoch, self.best.value, self.best.state = epoch, value, module.changed()

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
            "waited": self.waited,
            "peak": self.peak,
            "best": {"epoch": self.best.epoch, "value": self.best.value, "state": self.best.state},
        }
