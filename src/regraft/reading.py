"""One run's pictures, or arrays, read live: what training and evaluation see of them, and what is fitted on train's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regraft import whitening
from regraft.datasets.samples import SPLITS
from regraft.datasets.splits import labelled
from regraft.feeds import EXTRACT, Arrays, Every, Live
from regraft.views import IDENTITY, Drawn, Seen
from regraft.whitening import Colours, Whitening, fit

if TYPE_CHECKING:
    from regraft.datasets.samples import Samples
    from regraft.datasets.source import Source
    from regraft.settings import Settings


class Reading:
    """The live feeds of each split."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source
        self.samples: dict[str, Samples] = {split: source.split(split) for split in (*SPLITS, *source.shifts)}
        # places in train of the pictures that have a label; None: all have, or the others are not there, since nothing learns without
        self.labelled: Tensor | None = None
        if (known := labelled(settings.dataset, self.samples["train"])) is not None:
            if settings.freeze.alone:
                self.labelled = torch.from_numpy(known)
            else:
                self.samples["train"] = self.samples["train"].take(known)

    def told(self, split: str) -> Tensor:
        """Places in a split of the pictures whose truth is known, by which it is measured: [k] int64, in its order."""
        return self.labelled if split == "train" and self.labelled is not None else torch.arange(len(self.samples[split]))

    def live(self, split: str, augmented: bool) -> Live | Arrays:
        """A split as training sees it (train alone is augmented), or as it is; what is no picture is never changed."""
        if self.source.input != "pictures":
            return Arrays(self.source, self.samples[split])
        return self.pictures(split, augmented)

    def pictures(self, split: str, augmented: bool) -> Live:
        """The same, of a set of pictures."""
        s = self.settings
        augmentation = s.augmentation if augmented and split == "train" else None
        colours = self.colours if augmentation else None
        drawn = s.cache.views if augmentation else None
        return Live(self.source, self.samples[split], s.size, s.data.fit, augmentation, s.seed, colours, s.data.crop, drawn)

    def training(self) -> Sequence[Seen] | None:
        """The views that training sees of each picture; None: what it sees is drawn anew in each epoch, and so never ends."""
        s = self.settings
        return [Drawn(number) for number in range(s.cache.views)] if s.cache.views else s.augmentation.finite()

    def measuring(self) -> Sequence[Seen]:
        """The views over which an answer is averaged at the end; one: the picture as it is."""
        return (self.training() if self.settings.evaluate.views else None) or [IDENTITY]

    def every(self, samples: Samples, views: Sequence[Seen]) -> Every:
        """These views of these pictures, each of which is read once."""
        drawn = self.pictures("train", augmented=True) if any(isinstance(view, Drawn) for view in views) else None
        return Every(self.live("train", augmented=False), drawn, views, samples)

    def sampling(self) -> dict[str, Any]:
        """How an epoch of training goes through the pictures: what `GlobalBatches` is given."""
        augmentation = self.settings.augmentation
        views = len(self.training() or augmentation.symmetries())
        expand = augmentation.views == "expand" and views > 1
        return {"seed": self.settings.seed, "views": views, "expand": expand, "mix": augmentation.mix()}

    def whitening(self) -> Whitening | None:
        """What pictures pass through before the net, fitted on train's as they are; None: the augmentation asks for none."""
        wanted = self.settings.augmentation.whiten()
        return fit(self._train, wanted.kind, wanted.over, wanted.epsilon, wanted.components) if wanted else None

    @cached_property
    def colours(self) -> Colours | None:
        """Train's colours, where the augmentation needs them."""
        return whitening.colours(self._train) if self.settings.augmentation.needs_colours else None

    def _train(self) -> Iterable[Tensor]:
        """Train's pictures as they are, in batches: uint8 [b, 3, size, size]"""
        return (batch.x for batch in self.pictures("train", augmented=False).in_order(EXTRACT, self.settings.hardware.readers()))
