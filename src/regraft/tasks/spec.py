"""What every task is to the config: what truth it learns, what it measures, and what is told of its answers. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regraft.registry import Named

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units

LOWER = ("loss", "calibration_error", "mae", "rmse", "nll", "cer", "wer")  # of these metrics less is better; all others grow


class TaskSpec(Named):
    """Common to all tasks. Metrics are named as in `METRICS`; `loss` is measured by every task."""

    KIND: ClassVar[Literal["class", "tags", "numbers", "boxes", "text", "frames"]]  # what a dataset's samples must carry
    brings: ClassVar[Mapping[str, str]] = {}  # what its choice chooses too, unless something else is given
    METRICS: ClassVar[tuple[str, ...]]  # the first is what an epoch is judged by, unless trainer.monitor says otherwise

    def meters(self, outputs: int) -> dict[str, Metric]:
        """A torchmetrics metric for each of `METRICS` that means something here; each takes what `judged` gives, of no rows too."""
        raise NotImplementedError

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        """[n, outputs] in `units`, [n] or [n, outputs] as the data has it -> scores and truth to be compared"""
        return self.scores(logits), truth

    def scores(self, logits: Tensor) -> Tensor:
        """[n, outputs] -> what is told to users: probabilities, or numbers"""
        raise NotImplementedError

    def averaged(self, logits: Tensor) -> Tensor:
        """[v, n, outputs] of v views of each picture -> [n, outputs] whose scores are the mean of the views' scores"""
        raise NotImplementedError

    def answers(self, scores: Tensor, names: list[str]) -> list[Any]:
        """For each picture what the scores say, in the data's own terms."""
        raise NotImplementedError

    def truths(self, truth: Tensor, names: list[str]) -> list[Any]:
        """For each picture what is true, in the same terms."""
        raise NotImplementedError
