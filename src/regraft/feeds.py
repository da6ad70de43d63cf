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
from regraft.stopping import reader
from regraft.streams import generator
from regraft.views import IDENTITY, Drawn, Seen

if TYPE_CHECKING:
    from regraft.cache import Rows
    from regraft.datasets.samples import Samples
    from regraft.datasets.source import Source
    from regraft.whitening import Colours

EXTRACT = 64  # pictures of a batch that is only looked at
ROWS = 1024  # and of a batch of their features, which are small


class Feed(Dataset[Batch]):
    """Gives the batch of a share. One item is asked for by a whole share, so that a batch is read in one go."""

    cached = False

    @property
    def light(self) -> bool:
        """Whether reading costs next to nothing, so that other processes would only be in the way."""
        return self.cached

    def __init__(self, samples: Samples) -> None:
        self.samples = samples  # as columns: reader processes share them
        self.truth = truth(samples)

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
        how = {"collate_fn": _same, "num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": reader}
        return Loader(self, batch_sampler=batches, **how)  # type: ignore[arg-type]

    def in_order(self, size: int, workers: int = 0) -> Iterator[Batch]:
        """The whole split, in order, plain, in batches of `size`."""
        yield from self.loader(GlobalBatches(len(self), Arithmetic(size, 1, size, 1)), workers)


class Live(Feed):
    """Pictures read from the source: uint8 [b, 3, size, size]; floats in 0..1 where they are mixed."""

    def __init__(
        self,
        source: Source,
        samples: Samples,
        size: int,
        how: Literal["crop", "squash", "pad"],
        augmentation: AugmentationSpec | None = None,
        seed: int = 0,
        colours: Colours | None = None,
        crop: float = 1.0,
        drawn: int | None = None,
    ) -> None:
        """`crop`: the part of the side that `how`=crop keeps. `colours`: the train set's, for an augmentation that needs them. `drawn`:
        how many draws of a random augmentation are all that is ever seen of a picture; None: each epoch draws anew."""
        super().__init__(samples)
        self.source, self.size, self.how, self.seed = source, size, how, seed
        self.symmetries = augmentation.symmetries() if augmentation else [IDENTITY]
        self.views: Sequence[Seen] = self.symmetries if drawn is None else [Drawn(number) for number in range(drawn)]
        margin = augmentation.margin if augmentation else 1.0
        self.read = round(size * margin)  # px: what a random crop is cut from
        self.crop = crop if margin == 1 else 1.0  # a random crop takes the place of the middle
        self.change = augmentation.transform(size, colours) if augmentation else None
        self.mix = augmentation.mix() if augmentation else None
        self.squares: Rows | None = None  # the pictures, decoded before; None: each is decoded when it is seen

    @property
    def light(self) -> bool:
        return self.squares is not None and self.change is None

    def batch(self, share: Share) -> Batch:
        batch = super().batch(share)
        if share.partners is None or self.mix is None:
            return batch
        others = self.tensors(share.partners.picture, share.partners.view, share.epoch)
        x, own = self.mix.apply(batch.x.float() / 255, others.float() / 255, share.partners.plan)
        done = share._replace(partners=share.partners._replace(plan=None))  # a plan's float64 is nothing for every device
        return batch._replace(x=x, share=done, other=self.truth[share.partners.picture], own=own)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        if self.squares is None or self.change is not None:  # each picture has a random stream of its own
            return torch.stack([self.picture(*one, epoch) for one in zip(picture.tolist(), view.tolist(), strict=True)])
        x = self.squares.gather(picture)  # [b, 3, size, size]
        for number in view.unique().tolist() if len(self.symmetries) > 1 else ():
            mine = view == number
            x[mine] = self.symmetries[number](x[mine])
        return x

    def picture(self, index: int, view: int, epoch: int) -> Tensor:
        """What an epoch sees of one picture in one view: uint8 [3, size, size]"""
        sample = self.samples[index]
        key = (self.seed, "augment", epoch, index, view)
        square = self.square(self.source.read(sample)) if self.squares is None else self.squares.gather(torch.tensor([index]))[0]
        return self.seen(square, self.views[view], sample.sha256, key)

    def square(self, pixels: np.ndarray) -> Tensor:
        """uint8 [h, w, 3] -> [3, m, m], of which `seen` takes a view"""
        return torch.from_numpy(fitted(pixels, self.read, self.how, self.crop))

    def seen(self, square: Tensor, view: Seen, sha256: str, key: tuple[int | str, ...] = ()) -> Tensor:
        """[3, m, m] -> [3, size, size]: one view. `key` is the stream of what is drawn anew; a pre-drawn view follows from the picture's
        own hash and the view's number alone, not from the seed or the set: all runs share it."""
        if isinstance(view, Drawn):
            key = ("views", view.number, sha256)
            view = self.symmetries[int(torch.randint(len(self.symmetries), (), generator=generator(*key, "symmetry")))]
        return view(self.change(square, key) if self.change else square)


class Arrays(Feed):
    """What is no picture, read from the source as it is: [b, ...]; it has one view."""

    symmetries: Sequence[Seen] = (IDENTITY,)

    def __init__(self, source: Source, samples: Samples) -> None:
        super().__init__(samples)
        self.source = source

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        return torch.stack([self.square(self.source.read(self.samples[index])) for index in picture.tolist()])

    def square(self, values: np.ndarray) -> Tensor:
        """An array, of which `seen` takes a view"""
        return torch.from_numpy(values)

    def seen(self, whole: Tensor, view: Seen, sha256: str, key: tuple[int | str, ...] = ()) -> Tensor:
        """The array itself."""
        return whole


class Every(Feed):
    """Several views of each picture, which is read once: uint8 [b, views, 3, size, size]; or an array in its one view, [b, 1, ...]"""

    def __init__(self, plain: Live | Arrays, drawn: Live | None, views: Sequence[Seen], samples: Samples) -> None:
        """`plain`: how a picture is seen as it is, and turned; `drawn`: how pre-drawn views are."""
        super().__init__(samples)
        self.plain, self.drawn, self.views = plain, drawn, list(views)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        samples = [self.samples[index] for index in picture.tolist()]
        return torch.stack([self.seen(self.plain.source.read(sample), sample.sha256) for sample in samples])

    def seen(self, pixels: np.ndarray, sha256: str) -> Tensor:
        """uint8 [h, w, 3] -> [views, 3, size, size]"""
        found: list[Tensor] = []
        squares: dict[bool, Tensor] = {}
        for view in self.views:
            live: Live | Arrays | None = self.drawn if isinstance(view, Drawn) else self.plain
            assert live is not None, "pre-drawn views come of an augmentation"
            kind = live is self.drawn
            squares[kind] = squares[kind] if kind in squares else live.square(pixels)
            found.append(live.seen(squares[kind], view, sha256))
        return torch.stack(found)


class Cached(Feed):
    """What a frozen part gave for each picture: [b, ...], one store of rows for each view."""

    cached = True

    def __init__(self, views: Sequence[Rows], samples: Samples) -> None:
        super().__init__(samples)
        self.views = list(views)

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        if len(self.views) == 1:
            return self.views[0].gather(picture)
        found: Tensor | None = None
        for number in view.unique().tolist():
            mine = view == number
            rows = self.views[number].gather(picture[mine])
            found = rows.new_empty(len(view), *rows.shape[1:]) if found is None else found
            found[mine] = rows
        assert found is not None, "a share has a row"
        return found


class Loader(DataLoader[Batch]):
    """Raises the UserError that a worker met, as it is."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def truth(samples: Samples) -> Tensor:
    """[n] int64 classes; [n, k] floats where samples have many labels or numbers; [n, ...] where they have arrays"""
    return torch.from_numpy(samples.truth())


def fitted(picture: np.ndarray, size: int, how: Literal["crop", "squash", "pad"], crop: float = 1.0) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [c, size, size]"""
    return np.ascontiguousarray(fit(picture, size, how, crop).transpose(2, 0, 1))


def _same(batch: Batch) -> Batch:
    return batch
