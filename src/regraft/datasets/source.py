"""A `Source` is an opened dataset: classes, samples with their splits and content hashes, and a way to read each.

To bring a set of your own, subclass `Source` and write `read`:

    class Mine(Source):
        def read(self, sample: Sample) -> np.ndarray: ...   # uint8 [h, w, 3]

It must be picklable (loader workers get a copy) and must hold no pictures beyond what fits in memory. What is no picture is an array of one
shape for the whole set, and `input` says what it means:

- sequence: float32 [T, f + 1], the last feature 1 where there is a step and 0 behind the end, where all others are 0 too;
- tokens: int64 [T], each a place in `tokens`, 0 behind the end;
- array: float32 of any shape.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from regraft.datasets.samples import SPLITS, Sample, Samples
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

Kind = Literal["class", "tags", "numbers", "boxes", "text", "frames"]
Input = Literal["pictures", "sequence", "tokens", "array"]
PICTURES: dict[str, Any] = {"kind": "pictures", "shape": None, "tokens": 0}  # the facts of what enters a net, of a set of pictures
ARRAYS = ("boxes", "text", "frames")  # kinds whose samples carry an array as target


class Source:
    """An opened dataset. `samples` are in the order of their ids, whatever order they are given in."""

    input: Input = "pictures"  # what `read` gives
    shape: tuple[int, ...] | None = None  # of what it gives; None: pictures, of any size
    tokens: Sequence[str] = ()  # what each number of a sequence of tokens stands for; that of 0 is empty
    shifts: tuple[str, ...] = ()  # further splits, which are measured as test is

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
        1) or numbers, which `classes` then names. Or an array of one shape for the whole set: boxes, float32 [M, 5] (class, -1 where
        there is none; x0, y0, x1, y1 as parts of the picture's width and height); text, int64 [R, L] (R texts for each sample, each of L
        places in `classes`, 0 behind its end); frames, float32 [T, P + 1] (P numbers for each step, and whether there is one).
        `remarks`: what a reader of the results must know about the data.

        Raises ValueError for ids that are not unique, labels without a class, splits that are none of train, val, test, and targets that
        don't fit the kind: mistakes of the code that made the samples.
        """
        self.classes = list(classes)
        self.kind = kind
        self.samples = Samples.of(map(self._checked, samples))
        self.skipped = list(skipped)
        self.remarks = list(remarks)
        if (twice := self.samples.twice()) is not None:
            raise ValueError(f"two samples have the id {twice}")

    def _checked(self, sample: Sample) -> Sample:
        if sample.split not in (*SPLITS, *self.shifts) or not 0 <= sample.label < len(self.classes):
            raise ValueError(f"{sample}: split must be one of {SPLITS} and label an index into {len(self.classes)} classes")
        if self.kind in ARRAYS:
            if getattr(sample.target, "ndim", 0) != 2:
                raise ValueError(f"{sample.id}: a source of kind {self.kind} needs an array of two dimensions as target")
            return sample
        if (None if sample.target is None else len(sample.target)) != (None if self.kind == "class" else len(self.classes)):
            needed = "no target" if self.kind == "class" else "a target for each class"
            raise ValueError(f"{sample}: a source of kind {self.kind} needs {needed}")
        return sample

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3], or an array of `shape`. Raises UserError for what can't be read."""
        raise NotImplementedError

    def split(self, name: str) -> Samples:
        """The samples of train, val, test or a shift; none where the set has no such split."""
        return self.samples.of_split(name)

    def sizes(self) -> dict[str, int]:
        """Pictures in each split; all three are named, an empty one too."""
        return self.samples.counts()

    def facts(self) -> dict[str, Any]:
        """What settings must fit, as a record holds it: the kind, the sizes of the splits, the classes, and what enters the net."""
        enters = {"kind": self.input, "shape": self.shape and list(self.shape), "tokens": len(self.tokens)}
        return {"kind": self.kind, "sizes": self.sizes(), "classes": list(self.classes), "input": enters}

    def fingerprint(self) -> str:
        """Hex sha256 over every (id, content, class name, split), and target where there is one: equal fingerprints, equal data; places and
        times don't matter."""
        total = hashlib.sha256()
        if self.kind != "class":
            total.update("\0".join((self.kind, *self.classes)).encode() + b"\n\0")
        if self.input != "pictures":
            total.update("\0".join((self.input, str(self.shape), *self.tokens)).encode() + b"\n\0")
        for sample in self.samples:
            target = sample.target
            if target is None:
                what = self.classes[sample.label]
            else:
                what = " ".join(map(repr, target)) if isinstance(target, tuple) else hashlib.sha256(target.tobytes()).hexdigest()
            line = "\0".join((sample.id, sample.sha256, what, sample.split))  # \0 is in no file name
            total.update(line.encode("utf-8", "surrogateescape") + b"\n\0")
        return total.hexdigest()


def under(sha256: str, name: str) -> str:
    """The hash of what a picture is under a corruption, or another change that has a name."""
    return hashlib.sha256(f"{sha256} {name}".encode()).hexdigest()


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
        """The picture, uint8 [h, w, 3]. Raises UserError for a file that is gone, damaged, or not what it was when the set was opened."""
        from regraft.datasets.pictures import changed, decode

        path = self.root / sample.id
        try:
            data = path.read_bytes()
        except OSError as error:
            remedy = f"can't be read ({error.strerror}), though it could when the set was opened; put it back and start again"
            raise UserError(Problem(str(path), None, remedy)) from None
        if self.content(sample, hashlib.sha256(data).hexdigest()) != sample.sha256:
            raise changed(str(path))
        return decode(data, str(path))

    def content(self, sample: Sample, sha256: str) -> str:
        """What the sample's hash must be, where its file's is `sha256`."""
        return sha256


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
        self.rows = array("q", (rows[sample.id] for sample in self.samples))  # in the order of the samples

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3], a copy of its own; grey becomes three equal channels."""
        picture = self.pixels[self.rows[self.samples.find(sample.id)]]
        return picture.copy() if picture.ndim == 3 else picture[:, :, None].repeat(3, axis=2)
