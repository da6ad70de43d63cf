"""Which epoch is kept, when a phase has learnt all it will, and what divergence is told as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError
from regraft.tasks import LOWER

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.settings import Settings


@dataclass
class Best:
    """The epoch whose weights are kept."""

    epoch: int = -1
    value: float = float("nan")
    state: dict[str, Tensor] = field(default_factory=dict)


class Judge:
    """Looks at each epoch's monitored metric."""

    def __init__(self, settings: Settings, best: Best) -> None:
        self.spec, self.monitor, self.rate, self.best = settings.trainer, settings.monitor, settings.optimizer.lr, best
        self.waited = 0  # epochs since the metric was better than `peak`
        self.peak: float | None = None

    def resume(self, told: Mapping[str, Any]) -> None:
        """Go on where an interrupted phase was, as `plain` has told it."""
        self.waited, self.peak = told["waited"], told["peak"]
        vars(self.best).update(told["best"])  # in place: the run looks at the same one

    def finite(self, epoch: int, loss: float) -> None:
        """Raises UserError for an epoch's train loss that is no finite number."""
        if not math.isfinite(loss):
            remedy = f"training has diverged: in epoch {epoch} the loss is no finite number; a lower rate would work, or trainer.clip=1"
            raise UserError(Problem("optimizer.lr", self.rate, remedy))

    def judge(self, epoch: int, metrics: dict[str, float], state: Callable[[], dict[str, Tensor]]) -> bool:
        """Keeps the epoch's weights (`state` copies them) where it is the best so far; whether the phase has waited long enough."""
        value = metrics.get(self.monitor, math.nan)  # no val pictures: the last epoch is kept
        lower = self.monitor.partition("/")[2] in LOWER
        if self.peak is None or math.isnan(self.peak) or (value < self.peak if lower else value > self.peak):
            self.peak, self.waited = value, 0
        else:
            self.waited += 1
        best = self.best
        better = best.epoch < 0 or math.isnan(best.value) or (value < best.value if lower else value > best.value)
        if better or self.spec.keep == "last":
            best.epoch, best.value, best.state = epoch, value, state()
        return self.spec.patience is not None and self.waited >= self.spec.patience

    def plain(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        best = self.best
        return {
            "waited": self.waited,
            "peak": self.peak,
            "best": {"epoch": best.epoch, "value": best.value, "state": best.state},
        }
