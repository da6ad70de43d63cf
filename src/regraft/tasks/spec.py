"""What every task is to the config: what truth it learns, what it measures, and what is told of its answers. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regraft.registry import Named

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units

LOWER = ("loss", "calibration_error", "mae", "rmse", "nll", "cer", "wer")  # of these metrics less is better; all others grow
HALF = 0.5  # from which score on something is said, where nobody has chosen better


def of_mean_odds(logits: Tensor) -> Tensor:
    """The log of the odds of the mean of probabilities, [v, ...] logits of v views -> [...]"""
    from torch.nn.functional import logsigmoid

    return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)


class TaskSpec(Named):
    """Common to all tasks. Metrics are named as in `METRICS`; `loss` is measured by every task."""

    KIND: ClassVar[Literal["class", "tags", "numbers", "boxes", "text", "frames"]]  # what a dataset's samples must carry
    brings: ClassVar[Mapping[str, str]] = {}  # what its choice chooses too, unless something else is given
    METRICS: ClassVar[tuple[str, ...]]  # the first is what an epoch is judged by, unless trainer.monitor says otherwise

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        """A torchmetrics metric for each of `METRICS` that means something here; each takes what `judged` gives, of no rows too.
        `thresholds`: what val has chosen; None: what is measured is val in training, on which they are yet to be chosen."""
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

    def thresholds(self, logits: Tensor, truth: Tensor) -> list[float] | None:
        """From which score on each output is said, chosen on val when training is over, from all of its answers and truths; None: this task
        has no such choice."""
        return None

    def unsure(self, truth: Tensor, names: Sequence[str]) -> list[str]:
        """The outputs for which val's truth leaves `thresholds` nothing to choose by: they keep one half."""
        return []

    def within(self, scores: Tensor, truth: Tensor) -> Tensor:
        """Scores without what stands beside padding alone."""
        return scores

    def details(self, logits: Tensor, truth: Tensor, names: list[str], thresholds: Sequence[float]) -> dict[str, dict[str, float]]:
        """What a split's figures are for each class: metric -> value, and `truths`, how many there are; nothing where classes have none."""
        return {}

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[Any]:
        """For each picture what the scores say, in the data's own terms; `thresholds`: as they were chosen."""
        raise NotImplementedError

    def truths(self, truth: Tensor, names: list[str]) -> list[Any]:
        """For each picture what is true, in the same terms."""
        raise NotImplementedError
