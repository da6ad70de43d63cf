"""One run's pictures, read live: what training and evaluation see of them, and what is fitted on train's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regraft.feeds import Live
from regraft.whitening import Colours, Whitening, colours, fit

if TYPE_CHECKING:
    from regraft.datasets.source import Sample, Source
    from regraft.settings import Settings

EXTRACT = 64  # pictures of a batch that is only looked at


class Reading:
    """The live feeds of each split."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source
        self.samples: dict[str, list[Sample]] = {split: source.split(split) for split in ("train", "val", "test")}

    def live(self, split: str, augmented: bool) -> Live:
        """A split as training sees it (train alone is augmented), or as it is."""
        s = self.settings
        augmentation = s.augmentation if augmented and split == "train" else None
        colours = self._colours if augmentation else None
        return Live(self.source, self.samples[split], s.size, s.data.fit, augmentation, s.seed, colours, s.data.crop)

    def sampling(self) -> dict[str, Any]:
        """How an epoch of training goes through the pictures: what `GlobalBatches` is given."""
        augmentation = self.settings.augmentation
        views = len(augmentation.symmetries())
        expand = augmentation.views == "expand" and views > 1
        return {"seed": self.settings.seed, "views": views, "expand": expand, "mix": augmentation.mix()}

    def whitening(self) -> Whitening | None:
        """What pictures pass through before the net, fitted on train's as they are; None: the augmentation asks for none."""
        wanted = self.settings.augmentation.whiten()
        return fit(self._train, wanted.kind, wanted.over, wanted.epsilon, wanted.components) if wanted else None

    @cached_property
    def _colours(self) -> Colours | None:
        """Train's colours, where the augmentation needs them."""
        return colours(self._train) if self.settings.augmentation.needs_colours else None

    def _train(self) -> Iterable[Tensor]:
        """Train's pictures as they are, in batches: uint8 [b, 3, size, size]"""
        return (batch.x for batch in self.live("train", augmented=False).in_order(EXTRACT, self.settings.hardware.readers()))
