"""Where a batch's tensors come from: pictures that are read now, or rows that a frozen part has left in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regraft.augment import AugmentationSpec
from regraft.batches import Batch, GlobalBatches, Share
from regraft.datasets.pictures import fit
from regraft.errors import UserError
from regraft.hardware import Batch as Arithmetic
from regraft.views import IDENTITY, View

if TYPE_CHECKING:
    from regraft.cache import Rows
    from regraft.datasets.source import Sample, Source
    from regraft.whitening import Colours


class Feed(Dataset[Batch]):
    """Gives the batch of a share. One item is asked for by a whole share, so that a batch is read in one go."""

    cached = False

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        self.truth = truth(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, share: Share) -> Batch | UserError:
        try:
            return self.batch(share)
        except UserError as error:  # from a worker, torch would hand on its text only
            return error

    def batch(self, share: Share) -> Batch:
        """The share with its tensors."""
        return Batch(self.tensors(share.picture, share.view, share.epoch), self.truth[share.picture], share, self.cached)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        """[b, ...] for these pictures in these views; both [b] int64"""
        raise NotImplementedError

    def loader(self, batches: GlobalBatches, workers: int = 0) -> DataLoader[Batch]:
        """The feed's batches, in the sampler's order."""
        # torch's types know no sampler that yields whole shares
        return Loader(self, batch_sampler=batches, collate_fn=_same, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]

    def in_order(self, size: int, workers: int = 0) -> Iterator[Batch]:
        """The whole split, in order, plain, in batches of `size`."""
        yield from self.loader(GlobalBatches(len(self), Arithmetic(size, 1, size, 1)), workers)


class Live(Feed):
    """Pictures read from the source: uint8 [b, 3, size, size]; floats in 0..1 where they are mixed."""

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        size: int,
        how: Literal["crop", "squash", "pad"],
        augmentation: AugmentationSpec | None = None,
        seed: int = 0,
        colours: Colours | None = None,
        crop: float = 1.0,
    ) -> None:
        """`crop`: the part of the side that `how`=crop keeps. `colours`: the train set's, for an augmentation that needs them."""
        super().__init__(samples)
        self.source, self.size, self.how, self.seed = source, size, how, seed
        self.views: list[View] = augmentation.symmetries() if augmentation else [IDENTITY]
        margin = augmentation.margin if augmentation else 1.0
        self.read = round(size * margin)  # px: what a random crop is cut from
        self.crop = crop if margin == 1 else 1.0  # a random crop takes the place of the middle
        self.change = augmentation.transform(size, colours) if augmentation else None
        self.mix = augmentation.mix() if augmentation else None

    def batch(self, share: Share) -> Batch:
        batch = super().batch(share)
        if share.partners is None or self.mix is None:
            return batch
        others = self.tensors(share.partners.picture, share.partners.view, share.epoch)
        x, own = self.mix.apply(batch.x.float() / 255, others.float() / 255, share.partners.plan)
        done = share._replace(partners=share.partners._replace(plan=None))  # a plan's float64 is nothing for every device
        return batch._replace(x=x, share=done, other=self.truth[share.partners.picture], own=own)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        return torch.stack([self.picture(*one, epoch) for one in zip(picture.tolist(), view.tolist(), strict=True)])

    def picture(self, index: int, view: int, epoch: int) -> Tensor:
        """What an epoch sees of one picture in one view: uint8 [3, size, size]"""
        picture = torch.from_numpy(fitted(self.source.read(self.samples[index]), self.read, self.how, self.crop))  # [c, h, w]
        if self.change:
            picture = self.change(picture, (self.seed, "augment", epoch, index, view))
        return self.views[view](picture)


class Cached(Feed):
    """What a frozen part gave for each picture: [b, ...], one store of rows for each view."""

    cached = True

    def __init__(self, views: Sequence[Rows], samples: Sequence[Sample]) -> None:
        super().__init__(samples)
        self.views = list(views)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        if len(self.views) == 1:
            return self.views[0].gather(picture)
        drawn = [self.views[each].gather(index[None]) for each, index in zip(view.tolist(), picture, strict=True)]
        return torch.cat(drawn)


class Loader(DataLoader[Batch]):
    """Raises the UserError that a worker met, as it is."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def truth(samples: Sequence[Sample]) -> Tensor:
    """[n] int64 classes; [n, k] floats where samples have many labels or numbers"""
    if samples and samples[0].target is not None:
        return torch.tensor([sample.target for sample in samples], dtype=torch.float32)
    return torch.tensor([sample.label for sample in samples], dtype=torch.int64)


def fitted(picture: np.ndarray, size: int, how: Literal["crop", "squash", "pad"], crop: float = 1.0) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [c, size, size]"""
    return np.ascontiguousarray(fit(picture, size, how, crop).transpose(2, 0, 1))


def _same(batch: Batch) -> Batch:
    return batch
