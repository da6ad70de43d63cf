"""The global batch: which pictures it holds, in which view, is decided once; each rank and micro-batch takes its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from regraft.hardware import Batch as Arithmetic
from regraft.streams import generator


class Share(NamedTuple):
    """What one rank works through at once: rows of a global batch."""

    picture: Tensor  # [b] int64: which pictures of the split
    view: Tensor  # [b] int64: which view of each
    row: Tensor  # [b] int64: where each stands in the global batch
    weight: Tensor  # [b] float: 1, or 0 for the stand-in of a rank that has nothing to do
    size: int  # of the global batch
    epoch: int
    step: int  # of the epoch


class Batch(NamedTuple):
    """A share with its tensors."""

    x: Tensor  # [b, c, h, w] uint8 pictures, or [b, ...] activations
    y: Tensor  # [b] int64
    share: Share


class GlobalBatches:
    """Batch sampler: the same global batches whatever the number of devices and micro-batches.

    The order is a function of (seed, epoch); the view of a picture is one of (seed, epoch, picture). The last batch may be
    smaller. Every rank gets the same number of shares; one that has no rows holds a stand-in of weight 0.
    """

    def __init__(
        self,
        count: int,
        arithmetic: Arithmetic,
        *,
        rank: int = 0,
        seed: int | None = None,
        views: int = 1,
        expand: bool = False,
        first_epoch: int = 0,
    ) -> None:
        """`seed` None: in order, first view. `expand`: every picture in every view each epoch, else one drawn view of each."""
        self.count, self.arithmetic, self.rank, self.seed = count, arithmetic, rank, seed
        self.views, self.expand = views, expand
        self.epoch = self.first_epoch = first_epoch
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning with the number of the epoch in its own fit."""
        self.epoch = self.first_epoch + epoch

    def draws(self) -> tuple[Tensor, Tensor]:
        """This epoch's pictures and their views, in order: two of [draws] int64."""
        if self.expand:
            index = torch.arange(self.count).repeat_interleave(self.views)
            view = torch.arange(self.views).repeat(self.count)
        else:
            index = torch.arange(self.count)
            view = torch.zeros(self.count, dtype=torch.int64)
            if self.seed is not None and self.views > 1:
                view = torch.randint(self.views, (self.count,), generator=generator(self.seed, "view", self.epoch))
        if self.seed is None:
            return index, view
        order = torch.randperm(len(index), generator=generator(self.seed, "order", self.epoch))
        return index[order], view[order]

    @property
    def steps(self) -> int:
        """Global batches, that is optimizer steps, in an epoch."""
        return -(-self.count * (self.views if self.expand else 1) // self.arithmetic.size)

    def __len__(self) -> int:
        return self.steps * self.arithmetic.accumulate

    def __iter__(self) -> Iterator[Share]:
        index, view = self.draws()
        a = self.arithmetic
        for step in range(self.steps):
            batch = slice(step * a.size, (step + 1) * a.size)
            index_, view_ = index[batch], view[batch]
            size = len(index_)
            parts = a.accumulate * a.devices
            for micro in range(a.accumulate):
                part = micro * a.devices + self.rank
                row = torch.arange(part * size // parts, (part + 1) * size // parts)  # a smaller batch is shared out evenly
                weight = torch.ones(len(row))
                if not len(row):
                    row, weight = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
                yield Share(index_[row], view_[row], row, weight, size, self.epoch, step)
