"""Samples as columns: millions of pictures in few objects, which forked readers share; a `Sample` is made where one is asked for.

A list of millions of Python objects costs three times the memory, and each reader process would come to hold a copy of it: looking at an
object changes its reference count, and so the page that it lies on.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")
HEX = 64  # characters of a sha256
CHUNK = 4096  # samples that are made at once, where many are asked for


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, sequence or text, without what `read` gives of it."""

    id: str  # relative path ("train/cat/1.png"), or e.g. "digits/0007"; unique in its source
    split: str  # train, val or test, or a shift of test
    label: int  # index into the source's classes; 0 where there is a target
    sha256: str  # hex, of the picture's bytes: equal where `read` gives equal pixels
    group: str | None = None  # samples of one group never cross a split; None: stands alone
    # many labels (0 or 1 for each class), numbers to predict, or an array of boxes, text or frames; None: `label` is the class
    target: tuple[float, ...] | np.ndarray | None = None


class Texts:
    """Strings, one after another in one buffer."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.buffer, self.ends = bytearray(), array("q", [0])
        for text in texts:
            self.buffer += text.encode("utf-8", "surrogateescape")
            self.ends.append(len(self.buffer))

    def __getitem__(self, row: int) -> str:
        return self.buffer[self.ends[row] : self.ends[row + 1]].decode("utf-8", "surrogateescape")


class Columns(NamedTuple):
    """All samples of a source, n of them, sorted by id."""

    id: Texts
    split: np.ndarray  # [n] uint8, which of `splits`
    label: np.ndarray  # [n] int32
    sha256: np.ndarray | Texts  # [n, 32] uint8; texts where some are no sha256
    group: np.ndarray | None  # [n] int32, which of `groups`, -1: none; None: no sample has one
    groups: tuple[str, ...]
    splits: tuple[str, ...]  # those of SPLITS, and further ones
    target: np.ndarray | None  # [n, k] float64, as exact as the table they were read from; or [n, ...] of what the samples brought


class Samples(Sequence[Sample]):
    """Samples in the order of their ids, or some of them in any order: a selection shares the columns that it was made from."""

    def __init__(self, columns: Columns, rows: np.ndarray) -> None:
        """`rows`: [m] int32, which of the columns' samples, and in which order."""
        self.columns, self.rows = columns, rows

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Samples:
        """Sorted by their ids. Either all have targets of one shape or none has one."""
        import numpy as np  # not needed to list the classes of a set

        ordered = sorted(samples, key=lambda sample: sample.id)
        splits = tuple(dict.fromkeys((*SPLITS, *(sample.split for sample in ordered))))
        code = {split: number for number, split in enumerate(splits)}
        names = dict.fromkeys(sample.group for sample in ordered if sample.group is not None)
        codes: dict[str | None, int] = {None: -1} | {name: number for number, name in enumerate(names)}
        columns = Columns(
            id=Texts(sample.id for sample in ordered),
            split=np.fromiter((code[sample.split] for sample in ordered), np.uint8, len(ordered)),
            label=np.fromiter((sample.label for sample in ordered), np.int32, len(ordered)),
            sha256=_digests([sample.sha256 for sample in ordered]),
            group=np.fromiter((codes[sample.group] for sample in ordered), np.int32, len(ordered)) if names else None,
            groups=tuple(names),
            splits=splits,
            target=np.array([sample.target for sample in ordered]) if ordered and ordered[0].target is not None else None,
        )
        return cls(columns, np.arange(len(ordered), dtype=np.int32))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        return Samples(self.columns, self.rows[at]) if isinstance(at, slice) else next(self._made(self.rows[at, None]))

    def __iter__(self) -> Iterator[Sample]:
        return chain.from_iterable(self._made(self.rows[at : at + CHUNK]) for at in range(0, len(self), CHUNK))

    def take(self, at: Sequence[int] | np.ndarray) -> Samples:
        """Those at these places ([k] whole numbers), in this order."""
        import numpy as np

        return Samples(self.columns, self.rows[np.asarray(at, np.int64)])

    def of_split(self, name: str) -> Samples:
        """Those of a split, in their order."""
        splits = self.columns.splits
        return Samples(self.columns, self.rows[self.columns.split[self.rows] == splits.index(name)] if name in splits else self.rows[:0])

    def find(self, name: str) -> int:
        """The row of an id in the columns. Raises KeyError where there is none."""
        ids = self.columns.id
        row = bisect_left(range(len(self.columns.label)), name, key=ids.__getitem__)
        if row == len(self.columns.label) or ids[row] != name:
            raise KeyError(name)
        return row

    def twice(self) -> str | None:
        """An id that two of the columns' samples have; None: each has its own."""
        ids = self.columns.id
        return next((one for one, other in pairwise(ids[row] for row in range(len(self.columns.label))) if one == other), None)

    def counts(self) -> dict[str, int]:
        """Split -> how many; train, val and test are always named."""
        import numpy as np

        splits = self.columns.splits
        return dict(zip(splits, np.bincount(self.columns.split[self.rows], minlength=len(splits)).tolist(), strict=True))

    def truth(self) -> np.ndarray:
        """[m] int64 classes; [m, k] float32 where samples have many labels or numbers; [m, ...] as it was given where they have arrays"""
        target = self.columns.target
        if target is None:
            return self.columns.label[self.rows].astype("int64")
        return target[self.rows].astype("float32") if target.dtype == "float64" else target[self.rows]

    def sha256s(self) -> list[str]:
        """[m] in hex."""
        return _hex(self.columns.sha256, self.rows)

    def _made(self, rows: np.ndarray) -> Iterator[Sample]:
        c, numbers = self.columns, rows.tolist()
        yield from map(
            Sample,
            map(c.id.__getitem__, numbers),
            map(c.splits.__getitem__, c.split[rows].tolist()),
            c.label[rows].tolist(),
            _hex(c.sha256, rows),
            repeat(None) if c.group is None else (None if code < 0 else c.groups[code] for code in c.group[rows].tolist()),
            self._targets(rows),
        )

    def _targets(self, rows: np.ndarray) -> Iterable[tuple[float, ...] | np.ndarray | None]:
        target = self.columns.target
        if target is None:
            return repeat(None)
        return map(tuple, target[rows].tolist()) if target.dtype == "float64" else iter(target[rows])


def _digests(hashes: Sequence[str]) -> np.ndarray | Texts:
    """[n, 32] uint8; what is no sha256 in lower-case hex is kept as it is."""
    import numpy as np

    found = np.empty((len(hashes), HEX // 2), np.uint8)
    for at in range(0, len(hashes), CHUNK):
        some = hashes[at : at + CHUNK]
        try:
            found[at : at + CHUNK] = np.frombuffer(bytes.fromhex("".join(some)), np.uint8).reshape(len(some), -1)
        except ValueError:
            return Texts(hashes)
        if _hex(found, np.arange(at, at + len(some))) != some:
            return Texts(hashes)
    return found


def _hex(hashes: np.ndarray | Texts, rows: np.ndarray) -> list[str]:
    if isinstance(hashes, Texts):
        return [hashes[row] for row in rows.tolist()]
    whole = hashes[rows].tobytes().hex()
    return [whole[at : at + HEX] for at in range(0, len(whole), HEX)]
