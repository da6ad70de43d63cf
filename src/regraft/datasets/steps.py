"""Sequences of steps, held in memory: each sample in its own length, and padded to the one shape of its set where it is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from regraft.datasets.source import Kind, Sample, Source
from regraft.errors import Problem, UserError

MOST = 1 << 29  # numbers that a padded set may hold: 2 GB of float32


class Sequences(Source):
    """Sequences float32 [T, f + 1], whose last feature is 1 where there is a step, or tokens int64 [T]; behind a sample's end all is 0."""

    shape: tuple[int, ...]

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        length: int,
        classes: Sequence[str],
        samples: Iterable[Sample],
        skipped: Iterable[Problem] = (),
        *,
        kind: Kind = "class",
        tokens: Sequence[str] = (),
        remarks: Iterable[str] = (),
    ) -> None:
        """`rows`: by id, a sample's steps [t, f], or its tokens [t]; 1 <= t <= length = T."""
        super().__init__(classes, samples, skipped, kind=kind, remarks=remarks)
        held = [rows[sample.id] for sample in self.samples]
        self.ends = np.cumsum([0, *map(len, held)])  # one array, so that forked readers share its pages
        self.flat = np.concatenate(held)  # [all steps, f], or [all tokens]
        self.tokens = tokens
        self.input: Literal["sequence", "tokens"] = "tokens" if tokens else "sequence"
        self.shape = (length,) if tokens else (length, self.flat.shape[1] + 1)

    def read(self, sample: Sample) -> np.ndarray:
        """float32 [T, f + 1], or int64 [T]."""
        steps = self.steps(sample)
        if self.tokens:
            padded = np.zeros(self.shape, np.int64)
            padded[: len(steps)] = steps
            return padded
        return masked(steps, self.shape[0])

    def steps(self, sample: Sample) -> np.ndarray:
        """A sample in its own length: [t, f] or [t], as it is held."""
        row = self.samples.find(sample.id)
        return self.flat[self.ends[row] : self.ends[row + 1]]


def masked(steps: np.ndarray, length: int) -> np.ndarray:
    """Steps [t, f] as float32 [length, f + 1]: padded, with the mask as last feature."""
    padded = np.zeros((length, steps.shape[1] + 1), np.float32)
    padded[: len(steps), :-1] = steps
    padded[: len(steps), -1] = 1
    return padded


def content(steps: np.ndarray, length: int) -> str:
    """Hex sha256 of what a sample of T = length is read as: of its steps, and of the shape that they are padded to."""
    shape = f"{steps.dtype} {steps.shape} {length}\n".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(steps).tobytes()).hexdigest()


def cut(rows: Mapping[str, Any], most: int | None, what: str, width: int) -> tuple[dict[str, Any], int, list[str]]:
    """Rows of at most `most` steps (None: as they are), the longest one's length (1 at least), and a remark that says how many were cut.

    A step has `width` numbers. Raises UserError (key dataset.length) where all rows, padded to the longest, are too much to hold.
    """
    longer = sum(len(row) > most for row in rows.values()) if most else 0
    held = {name: row[:most] for name, row in rows.items()}
    length = max([1, *map(len, held.values())])
    if length * width * len(held) > MOST:
        fits = max(1, MOST // (width * len(held)))
        remedy = f"{len(held):,} {what} padded to {length:,} steps are too much to hold; give dataset.length={fits} or less"
        raise UserError(Problem("dataset.length", most, remedy))
    told = [f"{longer:,} of {len(rows):,} {what} are longer than dataset.length={most} steps, and were cut"] if longer else []
    return held, length, told


@contextmanager
def called(what: str) -> Iterator[None]:
    """Where a mistake is told that is common to all sets, a sample is called `what` ("piece", "text"), for it is no picture."""
    try:
        yield
    except UserError as error:
        words = re.compile(r"(?<![\w/.-])picture(s?)(?![\w/.-])")  # in no path
        raise UserError(each._replace(remedy=words.sub(rf"{what}\1", each.remedy)) for each in error.problems) from None
