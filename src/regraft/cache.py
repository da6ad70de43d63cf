"""A content-addressed store of activations: what a frozen net gives for a picture is computed once and read ever after.

A store is a folder named by the hash of its description (transform, view, architecture and weights below the boundary, dtype).
It holds segments (segments.py), so that a reader sees whole rows or none. Rows are found by the picture's content hash: sets that
share pictures share rows. Two locks lie in a store: `lock`, of the one that builds, and `used`, which readers share and whoever
removes the store must have alone; its time says when the store was last used.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regraft.errors import Problem, UserError
from regraft.eviction import FOLDER, USED, claim, evict, last_used, size, stores_in
from regraft.files import digest, write_json
from regraft.locks import Lock
from regraft.ranks import ALONE, Ranks
from regraft.registry import Spec, doc
from regraft.segments import BUILDING, DAMAGED, KEY, PUBLISHED, Damaged, Segment, Writer, listed, read, set_aside, sweep

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

LOCK, ABOUT = "lock", "store.json"
Compute = Callable[[list[int], list[int]], Iterator[Sequence["Tensor"]]]


class CacheSpec(Spec):
    """The config section `cache`: where what is frozen is kept, and how much of it."""

    mode: Literal["auto", "off", "require"] = doc(
        "auto: wherever a boundary allows it; off: never; require: fail where it can't be", decides=False
    )
    dir: str | None = doc("folder of the store; null: regraft in the user's cache folder", decides=False, path=True)
    max_gb: float = doc("GB that stored activations may take", gt=0, decides=False)
    views: int | None = doc("pre-drawn views of each picture, in place of a random augmentation that runs live; null: none", ge=1)
    dtype: Literal["float32", "bfloat16"] = doc("precision in which frozen stages are computed and stored")

    def folder(self) -> Path:
        return Path(self.dir).expanduser() if self.dir else default_folder()


def default_folder() -> Path:
    """regraft's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "regraft"


class NoRoom(UserError):
    """The rows can't be kept: they are more than `cache.max_gb` allows, the disk is full, or this user may not write there."""


@dataclass
class Rows:
    """Rows of one store, memory-mapped, in the order of the asked-for keys; the store is in use as long as they live."""

    pages: list[Tensor]  # each [n, ...], of one segment
    page: Tensor  # [keys] int64: which page holds a key's row
    row: Tensor  # [keys] int64: which row of it
    row_shape: tuple[int, ...]
    dtype: torch.dtype
    use: Lock | None = None

    def __len__(self) -> int:
        return len(self.page)

    @property
    def bytes(self) -> int:
        """Of one row."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    def gather(self, index: Tensor) -> Tensor:
        """[b] int64 -> [b, ...]: a copy, in memory, of the rows"""
        import torch

        page, row = self.page[index], self.row[index]
        if len(self.pages) == 1:
            return self.pages[0].index_select(0, row)
        order = page.argsort()  # page by page, and then into the order that was asked for: no loop over rows
        row, start, out = row[order], 0, torch.empty(len(index), *self.row_shape, dtype=self.dtype)
        for rows, count in zip(self.pages, page.bincount(minlength=len(self.pages)).tolist(), strict=True):
            torch.index_select(rows, 0, row[start : start + count], out=out[start : start + count])
            start += count
        return out.index_select(0, order.argsort())


class Store:
    """One store. `description` is plain data: all that decides the rows' values."""

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.key = digest(description)
        self.folder = folder / FOLDER / self.key[:32]
        self.description = description
        self._use: Lock | None = None

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Positions of the keys (sha256 in hex) that have no row yet, each content once."""
        asked = _Asked(keys)
        return sorted(asked.first[self.find(asked).page < 0].tolist())

    def open(self, keys: Sequence[str]) -> Rows:
        """The rows of these keys, which `fill` has made sure of. Raises NoRoom where they have gone since."""
        import torch

        self.use()
        asked = _Asked(keys)
        found = self.find(asked)
        used, page = found.used()
        try:
            pages = [segment.map() for segment in used]
        except (OSError, RuntimeError):  # torch raises RuntimeError for a file that has gone
            pages = []
        if len(pages) < len(used) or (page < 0).any():
            remedy = "rows that were there have gone or are damaged; the same command again computes them"
            raise NoRoom(Problem("cache.dir", str(self.folder), remedy))
        shape, dtype = (used[0].shape, used[0].dtype) if used else ((), "float32")
        rows = torch.from_numpy(found.row[asked.which]), torch.from_numpy(page[asked.which])
        return Rows(pages, rows[1], rows[0], shape, getattr(torch, dtype), self._use)

    def use(self) -> None:
        """Marks the store as in use, by this process and now; does nothing where there is no store."""
        if self._use is None or not self._use.stands:
            self._use = None
            with suppress(OSError):
                self._use = Lock(self.folder / USED, alone=False)
        with suppress(OSError):  # another user's file can't be touched
            os.utime(self.folder / USED)

    def begin(self) -> Lock:
        """The builder's lock, waited for; makes the folder where there is none. Raises OSError where it can't be written."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # it was evicted in this moment
                self._use = Lock(self.folder / USED, alone=False)
                return Lock(self.folder / LOCK, alone=True)

    def clean(self) -> None:
        """For the builder alone: removes what a killed one left and what was damaged; says what the store is."""
        sweep(listed(self.folder, BUILDING, DAMAGED, f".{ABOUT}."))
        if not (self.folder / ABOUT).is_file():
            write_json(self.folder / ABOUT, self.description)

    def segments(self) -> list[Segment]:
        """Whole segments; a damaged one is set aside, and so built again."""
        found = []
        for path in listed(self.folder, PUBLISHED):
            try:
                segment = read(path)
            except Damaged:
                set_aside(path)
            else:
                found += [segment] if segment else []
        if len({(segment.shape, segment.dtype) for segment in found}) > 1:  # each is whole, but they can't all be of this store
            for segment in found:
                set_aside(segment.path)
            return []
        return found

    def find(self, asked: _Asked) -> _Found:
        """Where the rows of these contents lie."""
        import numpy as np

        found = _Found(self.segments(), np.full(len(asked.content), -1), np.zeros(len(asked.content), np.int64))
        for number, segment in enumerate(found.segments if len(asked.content) else []):
            with suppress(OSError):
                keys = segment.keys()
                order = np.argsort(keys)  # sorted keys are looked up in a third of the time
                at = np.searchsorted(asked.content, keys[order]) % len(asked.content)
                hits = asked.content[at] == keys[order]
                found.page[at[hits]], found.row[at[hits]] = number, order[hits]
        return found


class _Asked:
    """Keys, sorted once. [n] positions ask for [c] different contents."""

    def __init__(self, keys: Sequence[str]) -> None:
        import numpy as np

        self.all = np.frombuffer(bytes.fromhex("".join(keys)), f"S{KEY}")  # [n]
        order = np.argsort(self.all, kind="stable")
        ordered = self.all[order]
        new = np.ones(len(keys), bool)
        new[1:] = ordered[1:] != ordered[:-1]
        self.content = ordered[new]  # [c], sorted
        self.first = order[new]  # [c]: the first position that asks for it
        self.which = np.empty(len(keys), np.int64)  # [n]: which content a position asks for
        self.which[order] = np.cumsum(new) - 1


@dataclass
class _Found:
    segments: list[Segment]
    page: np.ndarray  # [c]: number of the segment that holds a content's row; -1: none
    row: np.ndarray  # [c]: which row of it

    def used(self) -> tuple[list[Segment], np.ndarray]:
        """The segments that hold something asked for, and `page` as their numbers."""
        import numpy as np

        numbers = np.unique(self.page[self.page >= 0])
        return [self.segments[number] for number in numbers], np.where(self.page < 0, -1, np.searchsorted(numbers, self.page))


def fill(stores: Sequence[Store], keys: Sequence[str], compute: Compute, ranks: Ranks = ALONE) -> list[int]:
    """Makes sure that every store has a row for every key (sha256 in hex); how many all ranks together computed now, for each store.

    `compute(positions, wanted)` gets positions in `keys` and which stores want their rows (indices into `stores`), and yields in the order
    of the positions, in batches, one tensor [b, ...] for each wanted store. What is there is not computed again, and each content once.
    One process builds a store while others wait for its lock; its ranks share the work, and all must call this. Raises NoRoom where the
    disk is full or the folder can't be written, and whatever `compute` raises, on all ranks; whole rows that were computed before stay.
    """
    with ExitStack() as held:
        todo: list[Any] = []
        with ranks.together():
            if ranks.rank == 0:
                todo = _plan(stores, keys, held)
        [todo, *_] = ranks.share(todo)
        written = [0] * len(stores)
        with ranks.together():
            for store in stores:
                store.use()
            if todo:
                written = _build(stores, keys, compute, [(wanted, _part(runs, ranks)) for wanted, runs in todo])
        return [sum(each) for each in zip(*ranks.share(written), strict=True)]


def _plan(stores: Sequence[Store], keys: Sequence[str], held: ExitStack) -> list[Any]:
    """[wanted stores, runs [start, stop) of positions] for each set of stores that lack the same rows; their locks are then `held`."""
    import numpy as np

    asked = _Asked(keys)

    def lacking() -> Any:  # [stores, contents]
        return np.array([store.find(asked).page < 0 for store in stores])

    for store in stores:
        store.use()
    absent = lacking()
    lacks = sorted((store for store, some in zip(stores, absent.any(1), strict=True) if some), key=lambda store: store.folder)
    if not lacks:
        return []
    for store in lacks:  # always in this order, so that no two runs wait for each other
        with _writing(store.folder):
            held.enter_context(store.begin())
            store.clean()
    absent = lacking()  # another process may have built them while this one waited
    patterns, group = np.unique(absent, axis=1, return_inverse=True)
    plan = []
    for number, pattern in enumerate(patterns.T):
        if pattern.any():
            positions = np.sort(asked.first[group.reshape(-1) == number])
            ends = np.flatnonzero(np.diff(positions) != 1)
            runs = np.stack([positions[np.r_[0, ends + 1]], positions[np.r_[ends, -1]] + 1], axis=1)
            plan.append([np.flatnonzero(pattern).tolist(), runs.tolist()])
    return plan


def _part(runs: Sequence[Sequence[int]], ranks: Ranks) -> list[int]:
    """A rank's share of the positions."""
    positions = [position for start, stop in runs for position in range(start, stop)]
    return positions[len(positions) * ranks.rank // ranks.world : len(positions) * (ranks.rank + 1) // ranks.world]


def _build(stores: Sequence[Store], keys: Sequence[str], compute: Compute, todo: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    writers = [Writer(store.folder) for store in stores]
    with ExitStack() as parts:
        for writer in writers:
            parts.callback(writer.discard)
        try:
            for wanted, positions in todo:
                start = 0
                for batch in compute(positions, wanted) if positions else ():
                    names = positions[start : start + len(batch[0])]
                    start += len(batch[0])
                    raw = bytes.fromhex("".join(keys[position] for position in names))
                    for number, rows in zip(wanted, batch, strict=True):
                        with _writing(stores[number].folder):
                            writers[number].add(raw, rows)
                if start != len(positions):
                    raise ValueError(f"{start} rows were computed of {len(positions)}")
        except BaseException as error:
            if not isinstance(error, NoRoom):
                with suppress(OSError):  # a broken picture, or ctrl-c: what was computed is right
                    for writer in writers:
                        writer.publish()
            raise
        for store, writer in zip(stores, writers, strict=True):
            with _writing(store.folder):
                writer.publish()
    return [writer.rows for writer in writers]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the disk refuses is told as NoRoom."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free room (regraft cache prune --max-gb N)" if full else "ask for the right to write there"
        remedy = f"can't write ({error.strerror}); {cure}, or name another folder with cache.dir"
        raise NoRoom(Problem("cache.dir", str(folder), remedy)) from error


def make_room(folder: Path, need: int, max_bytes: float, keep: Sequence[Store]) -> None:
    """Evicts whole stores, the longest unused first, until `need` bytes more fit `max_bytes` and the disk.

    None is evicted that a process uses or that is one of `keep`. Raises NoRoom where that leaves too little; then none is evicted.
    Of several ranks one alone should call this.
    """
    if need <= 0:
        return
    sizes = {each: size(each) for each in stores_in(folder)}
    total, free = sum(sizes.values()), _free(folder)
    lacking = max(total + need - max_bytes, need - free)
    claimed: list[tuple[Path, Lock]] = []
    for each in sorted(sizes.keys() - {store.folder for store in keep}, key=last_used):
        if lacking > 0 and (lock := claim(each)):
            claimed.append((each, lock))
            lacking -= sizes[each]
    if lacking > 0:
        freed = sum(sizes[each] for each, _ in claimed)
        if need > free + freed:
            remedy = f"{_gb(need)} GB would be stored and the disk has {_gb(free + freed)}; free room, or name a folder on another disk"
            raise NoRoom(Problem("cache.dir", str(folder), remedy))
        kept = f" beside {_gb(total - freed)} that are in use" if total > freed else ""
        remedy = f"{_gb(need)} GB would be stored{kept}; cache.max_gb={_gb(total - freed + need, up=True)} would do"
        raise NoRoom(Problem("cache.max_gb", max_bytes / 1e9, remedy))
    for each, lock in claimed:
        evict(each, lock)


def _free(folder: Path) -> float:
    """Bytes that the disk of a folder, which need not be there yet, has for this user."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _gb(count: float, up: bool = False) -> str:
    """Bytes in GB, in three figures."""
    value = count / 1e9 * (1.01 if up else 1)  # what a user is told to give must do, also when it is rounded
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
