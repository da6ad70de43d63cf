"""The caption task: a few words for each picture, measured as the COCO caption toolkit measures them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft.tasks.spec import TaskSpec
from regraft.vocabulary import decoded

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

    from regraft.tasks.units import Units


class Caption(TaskSpec):
    """Words for each picture: CIDEr-D, BLEU of 1 to 4 words, ROUGE-L."""

    KIND = "text"
    brings: ClassVar = {"head": "captioner", "loss": "own"}
    METRICS = ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")

    def meters(self, outputs: int, thresholds: Sequence[float] | None = None) -> dict[str, Metric]:
        from regraft.tasks import spoken

        return spoken.meters()

    def judged(self, logits: Tensor, truth: Tensor, units: Units | None) -> tuple[Tensor, Tensor]:
        """[n, L] words as numbers and [n, R, L'] references -> the same, whole"""
        return logits.long(), truth.long()

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def averaged(self, logits: Tensor) -> Tensor:
        """Captions have no mean: that of the first view, the picture as it is."""
        return logits[0]

    def answers(self, scores: Tensor, names: list[str], thresholds: Sequence[float] = ()) -> list[str]:
        return [decoded(row, names) for row in scores.tolist()]

    def truths(self, truth: Tensor, names: list[str]) -> list[str]:
        """The references, parted by |."""
        return ["|".join(text for row in rows if (text := decoded(row, names))) for rows in truth.tolist()]
