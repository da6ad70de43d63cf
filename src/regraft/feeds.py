"""Where a batch's tensors come from: pictures that are read now, or rows that a frozen part has left in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regraft.augment import IDENTITY, AugmentationSpec, View
from regraft.batches import Batch, GlobalBatches, Share
from regraft.datasets.pictures import fit
from regraft.errors import UserError
from regraft.hardware import Batch as Arithmetic

if TYPE_CHECKING:
    from regraft.cache import Rows
    from regraft.datasets.source import Sample, Source


class Feed(Dataset[Batch]):
    """Gives the batch of a share. One item is asked for by a whole share, so that a batch is read in one go."""

    cached = False

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, share: Share) -> Batch | UserError:
        try:
            return Batch(self.tensors(share), self.labels[share.picture], share)
        except UserError as error:  # from a worker, torch would hand on its text only
            return error

    def tensors(self, share: Share) -> Tensor:
        """[b, ...] for the share's rows"""
        raise NotImplementedError

    def loader(self, batches: GlobalBatches, workers: int = 0) -> DataLoader[Batch]:
        """The feed's batches, in the sampler's order."""
        # torch's types know no sampler that yields whole shares
        return Loader(self, batch_sampler=batches, collate_fn=_same, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]

    def in_order(self, size: int, workers: int = 0) -> Iterator[Batch]:
        """The whole split, in order, plain, in batches of `size`."""
        yield from self.loader(GlobalBatches(len(self), Arithmetic(size, 1, size, 1)), workers)


class Live(Feed):
    """Pictures read from the source: uint8 [b, 3, size, size]."""

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        size: int,
        how: Literal["crop", "squash", "pad"],
        augmentation: AugmentationSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__([sample.label for sample in samples])
        self.source, self.samples, self.size, self.how, self.seed = source, list(samples), size, how, seed
        finite = augmentation.finite() if augmentation else [IDENTITY]
        self.views: list[View] = finite or [IDENTITY]
        self.random = augmentation if augmentation and finite is None else None

    def tensors(self, share: Share) -> Tensor:
        pictures = []
        for index, view in zip(share.picture.tolist(), share.view.tolist(), strict=True):
            picture = torch.from_numpy(fitted(self.source.read(self.samples[index]), self.size, self.how))  # [c, h, w]
            if self.random:
                picture = self.random.random(picture, (self.seed, "augment", share.epoch, index, view))
            pictures.append(self.views[view](picture))
        return torch.stack(pictures)


class Cached(Feed):
    """What a frozen part gave for each picture: [b, ...], one store of rows for each view."""

    cached = True

    def __init__(self, views: Sequence[Rows], labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.views = list(views)

    def tensors(self, share: Share) -> Tensor:
        if len(self.views) == 1:
            return self.views[0].gather(share.picture)
        drawn = [self.views[view].gather(index[None]) for view, index in zip(share.view.tolist(), share.picture, strict=True)]
        return torch.cat(drawn)


class Loader(DataLoader[Batch]):
    """Raises the UserError that a worker met, as it is."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def fitted(picture: np.ndarray, size: int, how: Literal["crop", "squash", "pad"]) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [c, size, size]"""
    return np.ascontiguousarray(fit(picture, size, how).transpose(2, 0, 1))


def _same(batch: Batch) -> Batch:
    return batch
