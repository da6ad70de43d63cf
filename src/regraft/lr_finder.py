"""The learning-rate range test: a training whose rate grows with each step shows where the loss falls fastest (Smith 2017, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from scipy.signal import savgol_filter
from torchmetrics import Metric

from regraft.files import whole
from regraft.tuning import untouched

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

LAG = 0.9  # part of the running loss that stays at each step
EXPLODED = 4.0  # times the least running loss: no need to go on
WINDOW = 4  # a slope is taken over a quarter of the steps: batches differ, and over a few steps that is all one sees


class Found(NamedTuple):
    """A range test: the rates that were tried, the loss at each, and the rate where the loss fell fastest (None: nowhere)."""

    lrs: list[float]
    losses: list[float]
    suggestion: float | None


def find(
    module: pl.LightningModule,
    loader: DataLoader[Any],
    *,
    base: float,
    first: float = 1e-6,
    last: float = 1.0,
    steps: int = 100,
    trainer: Mapping[str, Any] | None = None,
) -> Found:
    """Train for `steps` optimizer steps, the rate growing exponentially from `first` to `last`, and put everything back.

    `base`: optimizer.lr, to which the groups' own rates keep their proportion, so that the suggestion is one for optimizer.lr. `trainer`:
    Lightning's arguments (`hardware.trainer()`, clipping). The loader's batches are gone through again where they are fewer. The
    module's schedule counts for nothing here; its weights, statistics, modes and metrics, and torch's random streams, stay as they were.
    """
    sweep = _Sweep(base, [first * (last / first) ** (step / max(1, steps - 1)) for step in range(steps)])
    runner = pl.Trainer(
        **{"accelerator": "cpu", "devices": 1, **(trainer or {})},
        max_steps=steps,
        max_epochs=-1,
        callbacks=[sweep],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        with untouched(module):
            runner.fit(module, loader)
    finally:
        module.trainer = None
        for metric in module.modules():
            if isinstance(metric, Metric):
                metric.reset()
    tried = sweep.rates[: len(sweep.losses)]
    return Found(tried, sweep.losses, steepest(tried, sweep.losses))


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate where the loss falls fastest over the logarithm of the rate (which grows evenly); None: it falls nowhere.

    The slope at a step is that of the straight line through a quarter of the steps around it (least squares), so the ends have none.
    """
    half = len(lrs) // WINDOW // 2
    if half < 1:
        return None
    slopes = savgol_filter(losses, 2 * half + 1, polyorder=1, deriv=1)[half:-half]
    best = int(np.argmin(slopes))
    return float(lrs[half + best]) if slopes[best] < 0 else None


def smoothed(losses: Sequence[float]) -> list[float]:
    """The losses along those straight lines."""
    half = len(losses) // WINDOW // 2
    return savgol_filter(losses, 2 * half + 1, polyorder=1).tolist() if half else list(losses)


def draw(found: Found, path: Path) -> None:
    """The loss over the rate as a PNG, written whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate (optimizer.lr)", ylabel="train loss")
    axes.plot(found.lrs, found.losses, color="tab:blue", alpha=0.35)
    axes.plot(found.lrs, smoothed(found.losses), color="tab:blue")
    fall = found.losses[0] - min(found.losses) if found.losses else 0.0
    if fall > 0:
        axes.set_ylim(min(found.losses) - fall / 10, found.losses[0] + fall)  # an explosion would flatten all else
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="tab:red", linestyle="--", label=f"the loss falls fastest: {found.suggestion:.2g}")
        axes.legend(frameon=False)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=120)


class _Sweep(Callback):
    """Sets the rate before each step, and notes the loss after it."""

    def __init__(self, base: float, rates: list[float]) -> None:
        self.base, self.rates = base, rates
        self.losses: list[float] = []
        self._running = 0.0
        self._least = math.inf  # running loss
        self._sum = 0.0  # of the micro-batches of this step
        self._step = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rates[trainer.global_step] * group["initial_lr"] / self.base

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs  # Lightning has divided it by the micro-batches
        self._sum += float(trainer.strategy.reduce(torch.as_tensor(loss).detach().float(), reduce_op="mean"))
        if trainer.global_step == self._step:
            return
        self._step, loss, self._sum = trainer.global_step, self._sum, 0.0
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.losses.append(loss)
        self._running = LAG * self._running + (1 - LAG) * loss
        running = self._running / (1 - LAG ** len(self.losses))  # as if it had not begun at 0
        self._least = min(self._least, running)
        trainer.should_stop = trainer.should_stop or running > EXPLODED * self._least
