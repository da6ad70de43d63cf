"""Pictures decoded once: the uint8 squares that live training cuts its views from, in a store, where they fit the budget."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regraft.cache import NoRoom, Store, fill, make_room
from regraft.feeds import EXTRACT, Feed

if TYPE_CHECKING:
    from regraft.feeds import Live
    from regraft.ranks import Ranks

FORMAT = 1  # raised when the same description would give other pixels


class Squares(Feed):
    """Each picture as it is decoded and made square: uint8 [b, 3, m, m]"""

    def __init__(self, live: Live, positions: Sequence[int]) -> None:
        super().__init__(live.samples.take(positions))
        self.live = live

    def tensors(self, picture: Tensor, view: Tensor, epoch: int) -> Tensor:
        return torch.stack([self.live.square(self.live.source.read(self.samples[index])) for index in picture.tolist()])


def keep(live: Live, folder: Path, max_bytes: float, readers: int, ranks: Ranks) -> str | None:
    """Give a live feed the squares of its pictures, decoding those that the store lacks; why not, where there is no room.

    Every rank calls this, and computes its share. Reader processes that are not forked would each be sent a copy: they decode anew.
    """
    if readers and live.change and multiprocessing.get_start_method() != "fork":
        return "reader processes are not forked here"
    store, keys = Store(folder, _description(live)), live.samples.sha256s()

    def compute(positions: list[int], wanted: list[int]) -> Iterator[list[Tensor]]:
        for batch in Squares(live, positions).in_order(EXTRACT, readers if len(positions) > 4 * EXTRACT else 0):
            yield [batch.x]

    try:
        with ranks.together():
            if ranks.rank == 0:
                make_room(folder, len(store.missing(keys)) * 3 * live.read**2, max_bytes, [store])
        fill([store], keys, compute, ranks)
        with ranks.together():
            live.squares = store.open(keys)
    except NoRoom as error:
        return str(error)
    return None


def _description(live: Live) -> dict[str, object]:
    """All that decides a square, beside the picture's bytes."""
    packages = {package: metadata.version(package) for package in ("pillow", "numpy")}
    crop = {"crop": live.crop} if live.how == "crop" else {}
    made = {"size": live.read, "fit": live.how, **crop}
    return {"format": FORMAT, "boundary": "pictures", "transform": made, "dtype": "uint8", "computed_by": packages}
