"""The global batch: which pictures it holds, in which view, is decided once; each rank and micro-batch takes its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from regraft.hardware import Batch as Arithmetic
from regraft.streams import generator

if TYPE_CHECKING:
    from regraft.transforms import Mix


class Partners(NamedTuple):
    """With what each row of a share is mixed."""

    picture: Tensor  # [b] int64: which pictures of the split
    view: Tensor  # [b] int64: which view of each
    plan: Any  # how, row by row: the augmentation's own


class Share(NamedTuple):
    """What one rank works through at once: rows of a global batch."""

    picture: Tensor  # [b] int64: which pictures of the split
    view: Tensor  # [b] int64: which view of each
    row: Tensor  # [b] int64: where each stands in the global batch
    weight: Tensor  # [b] float: 1, or 0 for the stand-in of a rank that has nothing to do
    size: int  # of the global batch
    epoch: int
    step: int  # of the epoch
    partners: Partners | None = None  # None: nothing is mixed


class Batch(NamedTuple):
    """A share with its tensors."""

    x: Tensor  # [b, c, h, w] pictures, uint8 or (mixed) floats in 0..1; or [b, ...] activations
    y: Tensor  # [b] int64 classes, or [b, k] labels or numbers
    share: Share
    cached: bool = False  # x is what enters a boundary
    other: Tensor | None = None  # as y: the partners'; None: nothing is mixed
    own: Tensor | None = None  # [b] in 0..1: how much of each row is its own


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
        mix: Mix | None = None,
        last: tuple[int, int] | None = None,
        begun: tuple[int, int] | None = None,
        places: Tensor | None = None,
    ) -> None:
        """`seed` None: in order, first view. `expand`: every picture in every view each epoch, else one drawn view of each. `mix`: rows
        are mixed with others of their global batch. `last`: an epoch and the number of its steps, where it is a shorter one. `begun`: an
        epoch and how many of its steps have been done before; they are counted, and passed over. `places` [count]: where in the split
        these pictures stand; None: it has no others."""
        self.count, self.arithmetic, self.rank, self.seed = count, arithmetic, rank, seed
        self.views, self.expand, self.mix, self.last, self.begun, self.places = views, expand, mix, last, begun, places
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
        """Global batches, that is optimizer steps, in a whole epoch."""
        return -(-self.count * (self.views if self.expand else 1) // self.arithmetic.size)

    @property
    def here(self) -> int:
        """Global batches in this epoch."""
        return self.last[1] if self.last and self.last[0] == self.epoch else self.steps

    def __len__(self) -> int:
        return self.here * self.arithmetic.accumulate

    def __iter__(self) -> Iterator[Share]:
        index, view = self.draws()
        index = index if self.places is None else self.places[index]
        a = self.arithmetic
        done = self.begun[1] if self.begun and self.begun[0] == self.epoch else 0
        for step in range(done, self.here):
            batch = slice(step * a.size, (step + 1) * a.size)
            index_, view_ = index[batch], view[batch]
            size = len(index_)
            drawn = self.mix.draw((self.seed or 0, "mix", self.epoch, step), size) if self.mix else None
            parts = a.accumulate * a.devices
            for micro in range(a.accumulate):
                part = micro * a.devices + self.rank
                row = torch.arange(part * size // parts, (part + 1) * size // parts)  # a smaller batch is shared out evenly
                weight = torch.ones(len(row))
                if not len(row):
                    row, weight = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
                mixed = None
                if self.mix and drawn:
                    partner, plan = drawn
                    mixed = Partners(index_[partner[row]], view_[partner[row]], self.mix.rows(plan, row))
                yield Share(index_[row], view_[row], row, weight, size, self.epoch, step, mixed)
