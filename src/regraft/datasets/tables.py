"""A csv table as a source: each line names a picture and its class, its tags or its numbers; mistakes are told with file and line."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from regraft.datasets.fingerprint import TOLD, examine
from regraft.datasets.layout import SPLIT_FOLDERS
from regraft.datasets.names import in_order
from regraft.datasets.source import Files, Kind, Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.errors import Problem, UserError, either, nearest

if TYPE_CHECKING:
    from regraft.datasets import Csv

DELIMITERS = ",;\t"  # those that are looked for
TAG = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}  # a column of one tag; some programs write whole numbers with a point


class Line(NamedTuple):
    """One line of the table."""

    number: int  # from 1, of the file
    cells: dict[str, str]  # column -> text without blanks around it


class _Mistakes:
    """Collects what is wrong, so that all of it can be told at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, list[Problem]()

    def add(self, line: int, given: object, remedy: str) -> None:
        self.found.append(Problem(f"{self.path}:{line}", given, remedy))

    def tell(self) -> None:
        """Raises UserError with the first 20 mistakes, if there are any."""
        if self.found:
            rest = len(self.found) - TOLD
            more = [Problem("dataset.path", str(self.path), f"{rest} more lines can't be used")] if rest > 0 else []
            raise UserError([*self.found[:TOLD], *more])


def load(spec: Csv, cache: Path) -> Source:
    """The pictures that the table names. Raises UserError for lines (file and line) that can't be used, and as `arrange` does."""
    path = Path(spec.path).expanduser()
    root = (Path(spec.root).expanduser() if spec.root else path.parent).resolve()
    lines = _read(spec, path)
    mistakes = _Mistakes(path)
    files = _files(lines, spec, root, mistakes)
    splits = [_split(line, spec.split, mistakes) for line in lines]
    kind, classes, labels, targets = _learnt(spec, lines, mistakes)
    mistakes.tell()

    chosen = [number for number, label in enumerate(labels) if label is not None]
    hashes, skipped = examine(root, [files[number] for number in chosen], cache, spec.on_error)
    samples = [
        Sample(
            id=files[number],
            split=splits[number],
            label=labels[number] or 0,
            sha256=hashes[files[number]],
            group=(lines[number].cells[spec.group] or None) if spec.group else None,
            target=targets[number] if targets else None,
        )
        for number in chosen
        if files[number] in hashes
    ]
    if not samples:
        raise UserError(Problem("dataset.path", str(path), "has no line with a picture that can be used"))
    brought = {split for split in splits if split not in (OPEN, "train")}
    if spec.split and not spec.folds and "train" not in splits:
        raise UserError(Problem("dataset.split", spec.split, f"no line of {path} is in train; write train for the pictures to learn from"))
    return Files(root, classes, arrange(spec, classes, samples, brought, kind=kind), skipped, kind=kind)


def _read(spec: Csv, path: Path) -> list[Line]:
    """The lines below the header. Raises UserError: no such file, not UTF-8, columns that are missing or twice there, ragged lines."""
    try:
        text = path.read_text("utf-8-sig")  # with the mark that spreadsheets put before the first column, or without it
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(Problem(f"{path}:{line}", None, "is no UTF-8; save the table as UTF-8")) from None
    except OSError as error:
        raise UserError(Problem("dataset.path", str(path), f"can't be read ({error.strerror}); give the csv file")) from None
    wanted = [
        *(("file", spec.file), ("label", spec.column), ("split", spec.split), ("group", spec.group)),
        *(("labels", name) for name in ([spec.labels] if isinstance(spec.labels, str) else spec.labels or ())),
        *(("targets", name) for name in spec.numbers or ()),
    ]
    needed = [(key, name) for key, name in wanted if name is not None]
    delimiter, header = headed(path, text, spec.delimiter, [name for _, name in needed])
    if missing := [(key, name) for key, name in needed if name not in header]:
        raise UserError(
            Problem(f"{path}:1", None, f"has no column {name} (dataset.{key}); {nearest(name, header) or f'there are {either(header)}'}")
            for key, name in missing
        )
    if twice := [name for name in dict.fromkeys(name for _, name in needed) if header.count(name) > 1]:
        raise UserError(Problem(f"{path}:1", None, f"has two columns called {name}; rename one") for name in twice)
    return list(lines_of(path, text, delimiter, header))


def headed(path: Path, text: str, delimiter: str | None, needed: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter, and the header's columns. Where none is given, it is the one that finds the most of the needed columns; of several
    the first. Raises UserError for what is no csv."""
    candidates, headers = [delimiter] if delimiter else list(DELIMITERS), dict[str, list[str]]()
    try:
        for each in candidates:
            headers[each] = [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=each), [])]
    except csv.Error as error:
        raise UserError(Problem(f"{path}:1", None, f"is no csv ({error}); its first line names the columns")) from None
    found = max(candidates, key=lambda each: sum(name in headers[each] for name in needed))
    return found, headers[found]


def lines_of(path: Path, text: str, delimiter: str, header: Sequence[str]) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            number, begin = begin, reader.line_num + 1  # a quoted field may go over several lines
            if number == 1 or not row:
                continue
            if len(row) != len(header):
                remedy = f"has {len(row)} fields where the header has {len(header)}; put text that holds a '{delimiter}' in double quotes"
                raise UserError(Problem(f"{path}:{number}", None, remedy))
            yield Line(number, {name: cell.strip() for name, cell in zip(header, row, strict=True)})
    except csv.Error as error:
        raise UserError(Problem(f"{path}:{begin}", None, f"is no sound csv ({error}); look at its double quotes")) from None


def _files(lines: Sequence[Line], spec: Csv, root: Path, mistakes: _Mistakes) -> list[str]:
    """The picture of each line, as a path relative to `root`; links are followed to see that none leaves it."""
    first: dict[str, int] = {}
    found = []
    for line in lines:
        given = line.cells[spec.file]
        name = os.path.normpath(given) if given else ""
        if not given:
            mistakes.add(line.number, None, f"has no file name in the column {spec.file}")
        elif PurePosixPath(given).is_absolute() or name.split(os.sep)[0] == os.pardir:
            mistakes.add(line.number, given, f"lies outside of {root}; give paths inside of it, or another dataset.root")
        elif (place := root / name).is_symlink() or place.exists():
            if not place.resolve().is_relative_to(root):
                mistakes.add(line.number, given, f"is a link out of {root}, to {place.resolve()}; copy the picture in its place")
            elif place.is_dir():
                mistakes.add(line.number, given, "is a folder; name a picture")
        elif spec.on_error == "raise":  # with skip, it is left out and listed with the others that can't be read
            near = nearest(place.name, os.listdir(place.parent), 1) if place.parent.is_dir() else ""
            mistakes.add(
                line.number, given, f"no such file in {root}; {near or 'give the folder that the paths start from as dataset.root'}"
            )
        if given and name in first:
            mistakes.add(line.number, given, f"is in line {first[name]} already; name each picture once")
        first.setdefault(name, line.number)
        found.append(name)
    return found


def _split(line: Line, column: str | None, mistakes: _Mistakes) -> str:
    if column is None:
        return OPEN
    word = line.cells[column]
    if word.lower() not in SPLIT_FOLDERS:
        mistakes.add(line.number, word, f"is no split; {nearest(word.lower(), SPLIT_FOLDERS) or f'{column} is {either(SPLIT_FOLDERS)}'}")
        return OPEN
    return SPLIT_FOLDERS[word.lower()]


def _learnt(
    spec: Csv, lines: Sequence[Line], mistakes: _Mistakes
) -> tuple[Kind, list[str], list[int | None], list[tuple[float, ...]] | None]:
    """What is learnt: its kind, the names of classes, tags or numbers, each line's label (None: not chosen), and each line's target."""
    if spec.column is not None:
        words = [line.cells[spec.column] for line in lines]
        for line, word in zip(lines, words, strict=True):
            if not word:
                mistakes.add(line.number, None, f"has no label in the column {spec.column}; give one, or remove the line")
        classes = _choose(spec, in_order(set(words) - {""}))
        if len(classes) < 2:
            raise UserError(Problem("dataset.label", spec.column, f"holds one class only, {either(classes)}; at least two are needed"))
        label_of = {name: label for label, name in enumerate(classes)}
        return "class", classes, [label_of.get(word) for word in words], None
    if spec.numbers is not None:
        return "numbers", list(spec.numbers), [0] * len(lines), [_numbers(line, spec.numbers, mistakes) for line in lines]
    if isinstance(spec.labels, str):
        tags = [[word.strip() for word in line.cells[spec.labels].split(spec.separator) if word.strip()] for line in lines]
        classes = _choose(spec, in_order({tag for each in tags for tag in each}))
        if not classes:
            raise UserError(Problem("dataset.labels", spec.labels, f"no line has a tag there; separate tags by '{spec.separator}'"))
        return "tags", classes, [0] * len(lines), [tuple(float(name in each) for name in classes) for each in tags]
    classes = _choose(spec, list(spec.labels or ()))
    return "tags", classes, [0] * len(lines), [_flags(line, classes, mistakes) for line in lines]


def _choose(spec: Csv, known: list[str]) -> list[str]:
    """`dataset.classes`, or all. Raises UserError for names that are not in the table."""
    if strange := [name for name in spec.classes or () if name not in known]:
        raise UserError(
            Problem("dataset.classes", name, f"is not in {spec.path}; {nearest(name, known) or f'there are {either(known[:TOLD])}'}")
            for name in strange
        )
    return spec.classes or known


def _flags(line: Line, columns: Sequence[str], mistakes: _Mistakes) -> tuple[float, ...]:
    for name in columns:
        if line.cells[name] not in TAG:
            mistakes.add(line.number, line.cells[name] or None, f"{name} must be 0 or 1")
    return tuple(TAG.get(line.cells[name], 0.0) for name in columns)


def _numbers(line: Line, columns: Sequence[str], mistakes: _Mistakes) -> tuple[float, ...]:
    values = []
    for name in columns:
        try:
            value = float(line.cells[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            mistakes.add(line.number, line.cells[name] or None, f"{name} must be a number; give one, or remove the line")
        values.append(value)
    return tuple(values)
