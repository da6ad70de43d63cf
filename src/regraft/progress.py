"""What a terminal shows while a phase trains: one bar, the epoch, and the last validation."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar(Callback):
    """One bar for a phase, over all its micro-batches; removed when the phase ends, however it ends."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        self.progress = Progress(*columns, transient=True)
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self.task = self.progress.add_task(self._named(trainer, module), total=total, completed=done, last="")
        self.progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.progress:
            self.progress.update(self.task, description=self._named(trainer, module))

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if self.progress:
            self.progress.advance(self.task)

    def epoch_ended(self, value: float) -> None:
        """Told the epoch's `monitor`."""
        if self.progress:
            self.progress.update(self.task, last=f"{self.monitor} {value:.3f}")

    def on_train_end(self, *rest: Any) -> None:
        self._stop()

    def on_exception(self, *rest: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None

    @staticmethod
    def _named(trainer: pl.Trainer, module: Any) -> str:
        return f"{module.phase.name}, epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
