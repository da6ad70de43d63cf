"""A `Source` is an opened dataset: classes, samples with their splits and content hashes, and a way to read each picture.

To bring a set of your own, subclass `Source` and write `read`:

    class Mine(Source):
        def read(self, sample: Sample) -> np.ndarray: ...   # uint8 [h, w, 3]

It must be picklable (loader workers get a copy) and must hold no pictures beyond what fits in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SPLITS = ("train", "val", "test")
Kind = Literal["class", "tags", "numbers"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, without its pixels."""

    id: str  # relative path ("train/cat/1.png"), or e.g. "digits/0007"; unique in its source
    split: str  # train, val or test
    label: int  # index into the source's classes; 0 where there is a target
    sha256: str  # hex, of the picture's bytes: equal where `read` gives equal pixels
    group: str | None = None  # samples of one group never cross a split; None: stands alone
    target: tuple[float, ...] | None = None  # many labels (0 or 1 for each class) or numbers to predict; None: `label` is the class


class Source:
    """An opened dataset. `samples` are in the order of their ids, whatever order they are given in."""

    def __init__(
        self,
        classes: Sequence[str],
        samples: Iterable[Sample],
        skipped: Iterable[Problem] = (),
        *,
        kind: Kind = "class",
        remarks: Iterable[str] = (),
    ) -> None:
        """`skipped`: the pictures that were left out, one Problem each. `kind`: what is learnt: one class for each picture, tags (each 0 or
        1) or numbers; `classes` then names the tags or the numbers. `remarks`: what a reader of the results must know about the data.

        Raises ValueError for ids that are not unique, labels without a class, splits that are none of train, val, test, and targets that
        don't fit the kind: mistakes of the code that made the samples.
        """
        self.classes = list(classes)
        self.samples = sorted(samples, key=lambda sample: sample.id)
        self.skipped = list(skipped)
        self.kind = kind
        self.remarks = list(remarks)
        for before, sample in zip([None, *self.samples], self.samples, strict=False):
            if before is not None and before.id == sample.id:
                raise ValueError(f"two samples have the id {sample.id}")
            if sample.split not in SPLITS or not 0 <= sample.label < len(self.classes):
                raise ValueError(f"{sample}: split must be one of {SPLITS} and label an index into {len(self.classes)} classes")
            if (None if sample.target is None else len(sample.target)) != (None if kind == "class" else len(self.classes)):
                raise ValueError(f"{sample}: a source of kind {kind} needs {'no target' if kind == 'class' else 'a target for each class'}")

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3]. Raises UserError for a picture that can't be read."""
        raise NotImplementedError

    def split(self, name: str) -> list[Sample]:
        """The samples of train, val or test; an empty list where the set has no such split."""
        return [sample for sample in self.samples if sample.split == name]

    def sizes(self) -> dict[str, int]:
        """Pictures in each split; all three are named, an empty one too."""
        counts = dict.fromkeys(SPLITS, 0)
        for sample in self.samples:
            counts[sample.split] += 1
        return counts

    def facts(self) -> dict[str, Any]:
        """What settings must fit, as a record holds it: the kind, the sizes of the splits, the classes."""
        return {"kind": self.kind, "sizes": self.sizes(), "classes": list(self.classes)}

    def fingerprint(self) -> str:
        """Hex sha256 over every (id, content, class name, split), and target where there is one: equal fingerprints, equal data; places and
        times don't matter."""
        total = hashlib.sha256()
        if self.kind != "class":
            total.update("\0".join((self.kind, *self.classes)).encode() + b"\n\0")
        for sample in self.samples:
            what = self.classes[sample.label] if sample.target is None else " ".join(map(repr, sample.target))
            line = "\0".join((sample.id, sample.sha256, what, sample.split))  # \0 is in no file name
            total.update(line.encode("utf-8", "surrogateescape") + b"\n\0")
        return total.hexdigest()


class Files(Source):
    """Pictures that lie in files; a sample's id is the path relative to `root`."""

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        samples: Iterable[Sample],
        skipped: Iterable[Problem] = (),
        *,
        kind: Kind = "class",
        remarks: Iterable[str] = (),
    ) -> None:
        super().__init__(classes, samples, skipped, kind=kind, remarks=remarks)
        self.root = root

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3]. Raises UserError for a file that is gone or damaged."""
        from regraft.datasets.pictures import decode

        path = self.root / sample.id
        try:
            data = path.read_bytes()
        except OSError as error:
            remedy = f"can't be read ({error.strerror}), though it could when the set was opened; put it back and start again"
            raise UserError(Problem(str(path), None, remedy)) from None
        return decode(data, str(path))


class InMemory(Source):
    """Small pictures that are held as arrays, by id: uint8 [h, w, 3] each."""

    def __init__(self, pictures: dict[str, np.ndarray], classes: Sequence[str], samples: Iterable[Sample]) -> None:
        super().__init__(classes, samples)
        self.pictures = pictures

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3]."""
        return self.pictures[sample.id].copy()


class Packed(Source):
    """Many small pictures of one size in one array: uint8 [n, h, w] (grey) or [n, h, w, 3]; `rows` says which is whose, by id."""

    def __init__(
        self, pixels: np.ndarray, rows: Mapping[str, int], classes: Sequence[str], samples: Iterable[Sample], *, remarks: Iterable[str] = ()
    ) -> None:
        super().__init__(classes, samples, remarks=remarks)
        self.pixels = pixels
        self.rows = {sample.id: rows[sample.id] for sample in self.samples}

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3], a copy of its own; grey becomes three equal channels."""
        picture = self.pixels[self.rows[sample.id]]
        return picture.copy() if picture.ndim == 3 else picture[:, :, None].repeat(3, axis=2)
