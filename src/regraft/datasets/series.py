"""Time series in aeon's .ts format (the UCR and UEA archives): channels of numbers, of any length, and a class for each.

A file's header says `@key value`; below `@data` each line is a case: its channels between colons, a channel's numbers between commas, and
its class at the end. `?` is a number that nobody knows (Bagnall et al. 2018, "The UEA multivariate time series classification archive").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from regraft.datasets.names import in_order
from regraft.datasets.source import Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.datasets.steps import MOST, Sequences, called, content, cut
from regraft.errors import Problem, UserError, either, nearest

if TYPE_CHECKING:
    from regraft.datasets.sequences import JapaneseVowels, Series

VOWELS = "datasets/data/JapaneseVowels"  # inside of aeon
BIGGEST = 1 << 31  # bytes of one file
TOLD = 20


class Case(NamedTuple):
    """One line of a file."""

    number: int  # the line's, from 1
    label: str  # empty where the file names no classes
    steps: np.ndarray  # float64 [t, channels]; NaN where a number is unknown


class Normalised(Sequences):
    """Series normalised by train: each channel minus its mean, divided by its deviation; an unknown number is 0 then."""

    mean: np.ndarray  # float64 [channels]
    std: np.ndarray

    def facts(self) -> dict[str, Any]:
        """With `scaling`: by what another series must be normalised to be asked of the same net."""
        return {**super().facts(), "scaling": {"mean": self.mean.tolist(), "std": self.std.tolist()}}


def load_vowels(spec: JapaneseVowels) -> Source:
    """270 train and 370 test cases. Raises UserError: neither aeon nor the files are there."""
    if spec.path:
        folder = Path(spec.path).expanduser()
    else:
        found = find_spec("aeon")
        if not (found and found.submodule_search_locations):
            remedy = "its files come with aeon: pip install --no-deps aeon; or give the folder that holds them as dataset.path"
            raise UserError(Problem("dataset.name", spec.name, remedy))
        folder = Path(found.submodule_search_locations[0], VOWELS)
    parts = {split: folder / f"JapaneseVowels_{split.upper()}.ts" for split in ("train", "test")}
    return _opened(spec, parts)


def load(spec: Series) -> Source:
    """The user's own file, or pair of files. Raises UserError: no file, lines (file and line) that can't be used, as `arrange` does."""
    return _opened(spec, _files(Path(spec.path).expanduser()))


def _opened(spec: JapaneseVowels | Series, parts: Mapping[str, Path]) -> Source:
    cases = {split: read(path) for split, path in parts.items()}
    channels = {path: each[0].steps.shape[1] for path, each in zip(parts.values(), cases.values(), strict=True)}
    if len(set(channels.values())) > 1:
        told = " and ".join(f"{path.name} has {count}" for path, count in channels.items())
        raise UserError(Problem("dataset.path", spec.path, f"both files must have the same channels, but {told}"))
    known = in_order({case.label for each in cases.values() for case in each})
    if strange := [name for name in spec.classes or () if name not in known]:
        raise UserError(
            Problem("dataset.classes", name, f"no such class; {nearest(name, known) or f'there are {either(known[:TOLD])}'}")
            for name in strange
        )
    classes = spec.classes or known
    if len(classes) < 2:
        raise UserError(Problem("dataset.path", spec.path, f"has one class only, {either(classes)}; at least two are needed"))
    raw, samples = dict[str, np.ndarray](), list[Sample]()
    for split, each in cases.items():
        for case in each:
            if case.label in classes:
                name = f"{parts[split].stem}/{case.number:06d}"
                raw[name] = case.steps
                samples.append(Sample(name, split, classes.index(case.label), content(case.steps, 0)))
    raw, length, remarks = cut(raw, spec.length, "series", 1 + next(iter(channels.values())))
    with called("case"):
        arranged = arrange(spec, classes, samples, [split for split in parts if split not in (OPEN, "train")])
    mean, std = scale([raw[sample.id] for sample in arranged if sample.split == "train"])
    rows = {sample.id: normalised(raw[sample.id], mean, std) for sample in arranged}
    if unknown := sum(int(np.isnan(raw[sample.id]).sum()) for sample in arranged):
        remarks.append(f"{unknown:,} numbers are unknown; each is taken for its channel's mean")
    source = Normalised(rows, length, classes, [replace(each, sha256=content(rows[each.id], length)) for each in arranged], remarks=remarks)
    source.mean, source.std = mean, std
    return source


def scale(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, float64 [channels], over all known numbers of the given series; a constant's deviation is 1."""
    together = np.concatenate(series)  # [all steps, channels]
    known = ~np.isnan(together)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, together, 0).sum(axis=0) / count
    std = np.sqrt((np.where(known, together - mean, 0) ** 2).sum(axis=0) / count)
    return mean, np.where(std > 0, std, 1)


def normalised(steps: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """float32 [t, channels]; unknown numbers are 0, which is the mean."""
    return np.nan_to_num((steps - mean) / std, nan=0.0).astype(np.float32)


def _files(path: Path) -> dict[str, Path]:
    """Split -> file; OPEN where the file brings no splits."""
    if path.is_dir():
        trains = sorted(path.glob("*_TRAIN.ts"))
        if path / f"{path.name}_TRAIN.ts" in trains:  # as the archives lay them out, with variants beside the set
            trains = [path / f"{path.name}_TRAIN.ts"]
        if len(trains) != 1:
            what = f"holds {either(each.name for each in trains)}; give one of these files" if trains else "holds no NAME_TRAIN.ts"
            raise UserError(Problem("dataset.path", str(path), what))
        [path] = trains
    if not path.is_file():
        raise UserError(
            Problem("dataset.path", str(path), "no such file; give a .ts file, or the folder of NAME_TRAIN.ts and NAME_TEST.ts")
        )
    stem = path.name.removesuffix(".ts").removesuffix("_TRAIN").removesuffix("_TEST")
    pair = {split: path.with_name(f"{stem}_{split.upper()}.ts") for split in ("train", "test")}
    if path not in pair.values():
        return {OPEN: path}
    if not pair["train"].is_file():
        raise UserError(Problem("dataset.path", str(path), f"there is no {pair['train'].name} beside it to learn from"))
    return {split: file for split, file in pair.items() if file.is_file()}


def read(path: Path, labelled: bool = True) -> list[Case]:
    """A .ts file's cases, one at least; `labelled`: it must name their classes. Raises UserError with the file and the line."""
    try:
        if path.stat().st_size > BIGGEST:
            raise UserError(Problem(str(path), None, f"is larger than {BIGGEST:,} bytes; give a smaller file"))
        with path.open(encoding="utf-8") as file:
            cases = list(_cases(path, enumerate(file, 1), labelled))
    except UnicodeDecodeError:
        raise UserError(Problem(str(path), None, "is no UTF-8; save it as UTF-8")) from None
    except OSError as error:
        raise UserError(Problem(str(path), None, f"can't be read ({error.strerror}); give a .ts file")) from None
    if not cases:
        raise UserError(Problem(str(path), None, "has no case below @data"))
    return cases


def _cases(path: Path, lines: Iterator[tuple[int, str]], labelled: bool) -> Iterator[Case]:
    labels, channels, held = _header(path, lines, labelled), None, 0
    for number, line in lines:
        if not (text := line.strip()) or text[0] in "#%":
            continue
        *parts, label = (part.strip() for part in (f"{text}:" if labels is None else text).split(":"))
        if not parts or (labels is not None and not label):
            raise _wrong(path, number, None, "needs channels and a class, with colons between them")
        if labels and label not in labels:
            raise _wrong(path, number, label, f"is no class of @classLabel, which has {either(labels[:TOLD])}")
        if len(parts) != (channels := channels or len(parts)):
            raise _wrong(path, number, None, f"has {len(parts)} channels where the lines above have {channels}")
        numbers = [_numbers(path, number, part) for part in parts]
        if len({len(each) for each in numbers}) > 1:
            raise _wrong(path, number, None, f"has channels of {either(sorted({len(each) for each in numbers}))} steps; all need the same")
        held += channels * len(numbers[0])
        if held > MOST:
            raise _wrong(path, number, None, f"the file has more than {MOST:,} numbers; give a smaller one")
        yield Case(number, label, np.array(numbers).T)


def _header(path: Path, lines: Iterator[tuple[int, str]], labelled: bool) -> list[str] | None:
    """The classes that the header names; None: its lines have none, and need none. Raises UserError for what is read by no net here:
    timestamps, numbers in place of classes."""
    labels: list[str] | None = []
    for number, line in lines:
        key, *values = line.split() or [""]
        match key.lower():
            case "@data":
                return labels
            case "@timestamps" if values[:1] and values[0].lower() == "true":
                raise _wrong(path, number, "@timeStamps true", "steps with times are not read; write plain numbers, one for each step")
            case "@targetlabel" if values[:1] and values[0].lower() == "true":
                raise _wrong(path, number, "@targetLabel true", "is a set of numbers to predict; one with @classLabel is needed")
            case "@classlabel":
                named = values[:1] == ["true"]
                if labelled and not named:
                    raise _wrong(path, number, line.strip(), "has no classes to learn; `@classLabel true NAME NAME ...` is needed")
                labels = values[1:] if named else None
            case key if key and key[0] not in "@#%":
                raise _wrong(path, number, None, "is neither `@key value`, a # comment nor @data; is this a .ts file?")
    raise UserError(Problem(str(path), None, "has no line @data; is this a .ts file?"))


def _numbers(path: Path, line: int, part: str) -> list[float]:
    numbers = []
    for word in part.split(","):
        try:
            value = math.nan if word.strip() == "?" else float(word)
        except ValueError:
            raise _wrong(path, line, word.strip()[:40] or None, "is no number; write one, or ? for an unknown one") from None
        if math.isinf(value):
            raise _wrong(path, line, word.strip(), "is not finite; write a number, or ? for an unknown one")
        numbers.append(value)
    return numbers


def _wrong(path: Path, line: int, given: str | None, what: str) -> UserError:
    return UserError(Problem(f"{path}:{line}", given, what))
