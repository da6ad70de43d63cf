"""The reading task: the text in a picture of one line, measured by how many characters and words are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units


class Ocr(TaskSpec):
    """The text of each line: character and word error rate, edits in parts of the true length; words lie between spaces (class 1)."""

    KIND = "text"
    brings: ClassVar = {"model": "crnn", "head": "ctc", "loss": "own"}
    METRICS = ("cer", "wer")

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from regraft.tasks.error_rates import CharacterErrors, WordErrors

        return {"cer": CharacterErrors(), "wer": WordErrors()}

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        """Texts [n, T] and [n, 1, L] -> [n, T], [n, L]"""
        return logits.long(), truth[:, 0].long()

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def averaged(self, logits: Tensor) -> Tensor:
        """Texts have no mean: that of the first view, the line as it is."""
        return logits[0]

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        return ["".join(names[number] for number in row) for row in scores.long().tolist()]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        return self.answers(truth[:, 0], names)
