"""Files that a finished run is asked about, read as the set that it has learnt on reads its own: series, texts, mails, lines of text.

Pictures need none of this: whatever set they are of, they are read alike (`pictures.decode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from regraft.datasets import pictures, series, text
from regraft.datasets.layout import SUFFIXES
from regraft.datasets.sequences import Chorales, JapaneseVowels, Series, Spam, Text, Texts
from regraft.datasets.steps import masked
from regraft.datasets.strung import DigitStrings, Lines, Words
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets.spec import DatasetSpec

LONGEST = 1 << 17  # steps of what is asked about
TABLES = (".csv", ".tsv")
LETTER = {DigitStrings: 1 / 2, Words: 3 / 8}  # how high a letter is in the sets' own lines, in parts of a line (the median)
EDGE = 3  # px left of a line's ink, and right of it
FAINT = 0.2  # of the darkest ink: what is fainter is paper
FLAT = 16  # of 255: a picture whose values differ less has no ink


class Known(NamedTuple):
    """What a run says of what it has learnt on."""

    spec: Any  # the dataset's section
    data: Mapping[str, Any]  # the record's facts of it: `Source.facts`
    folder: Path  # the run's: of tokens it holds the vocabulary


class Given(NamedTuple):
    """One thing that a run is asked about."""

    file: Path
    line: int | None  # of the file, from 1; None: the whole file is one
    values: np.ndarray  # what `Source.read` gives of it; longer where it is longer than all that the set holds


class Reader(NamedTuple):
    """How files are read that belong to a kind of set."""

    what: str
    suffixes: tuple[str, ...]  # of the files that are looked for in a folder; none: all
    read: Callable[[Known, Path], Iterator[Given]]


def reader(spec: DatasetSpec, run: str) -> Reader:
    """Raises UserError (key RUN) for a set whose files can't be read one by one."""
    found = next((READERS[kind] for kind in type(spec).__mro__ if kind in READERS), None)
    if found is None:
        music = isinstance(spec, Chorales)
        remedy = (
            f"regraft generate {run} --prime FILE.mid plays on from one" if music else "its predictions.parquet holds what it says of test"
        )
        raise UserError(Problem("RUN", run, f"it has learnt on dataset={spec.name}, whose files are not read one by one; {remedy}"))
    return found


def _series(known: Known, path: Path) -> Iterator[Given]:
    """The cases of a .ts file, which need no classes, normalised by train's mean and deviation."""
    mean, std = (np.array(known.data["scaling"][key]) for key in ("mean", "std"))
    for case in series.read(path, labelled=False):
        if (channels := case.steps.shape[1]) != len(mean):
            raise UserError(Problem(f"{path}:{case.number}", None, f"has {channels} channels, and the run has learnt on {len(mean)}"))
        steps = series.normalised(case.steps[: known.spec.length], mean, std)
        yield Given(path, case.number, masked(steps, _length(known, path, case.number, len(steps))))


def _texts(known: Known, path: Path) -> Iterator[Given]:
    """A .txt file is one text; each line of a table has one, in the column that the run has read, and needs no class."""
    if path.suffix.lower() not in TABLES:
        yield from _tokens(known, path, [(None, text.read(path))])
        return
    column = known.spec.text
    yield from _tokens(known, path, [(line, cells[column]) for line, cells in text.table(path, known.spec.delimiter, {"text": column})])


def _mails(known: Known, path: Path) -> Iterator[Given]:
    """A file is one mail as it was sent; its headers are not looked at."""
    yield from _tokens(known, path, [(None, text.mail(path))])


def _tokens(known: Known, path: Path, said: Sequence[tuple[int | None, str]]) -> Iterator[Given]:
    place = {token: number for number, token in enumerate(text.recall(known.folder))}
    spec: Texts = known.spec
    for line, each in said:
        row = text.encoded(text.tokens(each, spec.level, spec.length), place)
        padded = np.zeros(_length(known, path, line, len(row)), np.int64)
        padded[: len(row)] = row
        yield Given(path, line, padded)


def _length(known: Known, path: Path, line: int | None, steps: int) -> int:
    """What a sequence is padded to: the set's own length, or its own where that is more; padding changes no answer."""
    if steps > LONGEST:
        where = str(path) if line is None else f"{path}:{line}"
        raise UserError(Problem(where, None, f"has {steps:,} steps, more than {LONGEST:,}; shorten it"))
    return max(steps, known.data["input"]["shape"][0])


def _line(known: Known, path: Path) -> Iterator[Given]:
    """A picture of one line of text, dark on light or light on dark; of the set's own height and width it is taken as it is."""
    height, width = known.data["input"]["shape"]
    letter = next((LETTER[kind] for kind in type(known.spec).__mro__ if kind in LETTER), LETTER[Words])
    yield Given(path, None, line(pictures.decode(pictures.content(path), str(path)), height, width, letter * height))


def line(picture: np.ndarray, height: int, width: int, letter: float) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [height, width] in 0..1, 1 where there is ink; its letters, which are what paper parts, are `letter` px
    high, as in the lines that were learnt.

    Paper is what most of the picture's edge shows. A line that would be too long or too high becomes smaller.
    """
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)
    paper = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    ink = np.abs(grey - paper)
    if ink.max() < FLAT:
        return np.zeros((height, width), np.float32)
    ink /= ink.max()
    if ink.shape == (height, width):
        return ink
    seen = ink > FAINT
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(letter / _letter(ink > FAINT), height / ink.shape[0], (width - 2 * EDGE) / ink.shape[1])
    size = max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.LANCZOS)).clip(0, 1)
    found = np.zeros((height, width), np.float32)
    top = (height - small.shape[0]) // 2
    found[top : top + small.shape[0], EDGE : EDGE + small.shape[1]] = small
    return found


def _letter(seen: np.ndarray) -> float:
    """The median height of what is parted by columns without ink, bool [h, w] with some."""
    edges = np.flatnonzero(np.diff(seen.any(0).astype(np.int8), prepend=0, append=0))
    return float(np.median([np.ptp(np.flatnonzero(seen[:, left:right].any(1))) + 1 for left, right in edges.reshape(-1, 2)]))


READERS: dict[type, Reader] = {
    Series: Reader("series (.ts)", (".ts",), _series),
    JapaneseVowels: Reader("series (.ts)", (".ts",), _series),
    Text: Reader("texts (.txt, .csv)", (".txt", *TABLES), _texts),
    Spam: Reader("mails", (), _mails),
    Lines: Reader("pictures of a line of text", SUFFIXES, _line),
}
