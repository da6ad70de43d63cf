"""Run folders as the rows of a report: each read once; runs that differ in seed, fold or split alone are one row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from regraft.datasets import corruptions
from regraft.errors import Problem, UserError
from regraft.record import PREDICTIONS, RECORD, RunFolder
from regraft.report import words
from regraft.report.statistics import deviation, over_seeds, wilson
from regraft.tasks import LOWER

CHOICELESS = ("seed", "dataset.fold", "dataset.split_seed")  # keys of which no value is a choice
SILENT = ("logger", "launcher", "sweeper", "sweep", "cache", "plots", "hardware.workers", "hardware.threads", "trainer.checkpoint_seconds")
TOLD = (  # of a record, what a report needs
    *("run_id", "status", "command", "overrides", "git", "packages", "machine", "times", "seed", "metric", "metrics", "kept", "error"),
    *("data", "weights", "batch", "resolved", "warnings", "phases", "details", "group", "sha256"),
)
AXES = 8  # keys that make columns and figures, unless more are asked for
DEEPEST = 12  # folders below each other that are looked into


class Estimate(NamedTuple):
    """A metric of one row: the mean of its runs, and where another such mean may lie."""

    value: float
    spread: float | None  # standard deviation over runs
    low: float | None  # of the 95% interval; None: nothing to rest it on
    high: float | None
    how: str  # what the interval rests on
    n: int  # runs


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder can be read: a damaged one does not hide the others."""

    path: Path
    config: Mapping[str, Any]  # dotted key -> value; a group's entry under the group's own name
    record: Mapping[str, Any]
    status: str  # done, pruned, running, interrupted, failed or damaged
    trouble: str = ""  # what went wrong

    @classmethod
    def read(cls, folder: RunFolder) -> Run:
        """The run in this folder, whatever state it is in."""
        try:
            config, record = dict(flat(folder.config)), folder.record
        except UserError as error:
            return cls(folder.path, {}, {}, "damaged", words.plain(words.first(error), 400))
        status = words.status(record)
        trouble = words.plain(words.error(record), 2_000) if status in ("failed", "interrupted") else ""
        return cls(folder.path, config, {key: record[key] for key in TOLD if key in record}, status, trouble)

    def metric(self, name: str) -> float | None:
        """`test/accuracy`; `noise/accuracy`: the mean over the strengths of noise; None: it was not measured, or the run is not done."""
        metrics: Mapping[str, Any] = words.at(self.record, "metrics") or {}
        values = [metrics[name]] if name in metrics else [metrics[each] for each in metrics if gathered(each) == name != each]
        return fmean(values) if values and self.status == "done" and all(map(words.known, values)) else None

    @property
    def seconds(self) -> float | None:
        """What it took; of a group's time, its share."""
        for key in ("times.share", "times.total"):
            if words.known(value := words.at(self.record, key)):
                return float(value)
        return None

    @property
    def parameters(self) -> int | None:
        """That its last phase trains."""
        stages = next((phase.get("stages") for phase in reversed(self.record.get("phases") or []) if phase.get("stages")), None)
        return sum(each.get("training", 0) for each in stages) if stages else None


@dataclass(frozen=True)
class Row:
    """Runs that differ in seed, fold or split alone."""

    name: str  # the values of its axes
    values: Mapping[str, Any]  # axis -> value; a key that it does not have is not there
    runs: tuple[Run, ...]

    @cached_property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == "done")

    @cached_property
    def _estimates(self) -> dict[str, Estimate | None]:
        return {}

    def estimate(self, metric: str) -> Estimate | None:
        """None: none of its runs has this metric."""
        if metric not in self._estimates:
            self._estimates[metric] = self._estimate(metric)
        return self._estimates[metric]

    def _estimate(self, metric: str) -> Estimate | None:
        pairs = [(value, run) for run in self.done if (value := run.metric(metric)) is not None]
        if not pairs:
            return None
        equal = f", of {len(pairs)} equal runs" if self.alike else ""
        pairs = pairs[:1] if self.alike else pairs  # one run, however often it was run
        values = [value for value, _ in pairs]
        spread = deviation(values) if len(values) > 1 else None
        split, _, name = metric.rpartition("/")
        sizes = [words.at(run.record, f"data.sizes.{split}") for _, run in pairs]
        if name in ("accuracy", "top5_accuracy") and all(words.known(size) and size > 0 for size in sizes) and self._once(len(pairs)):
            n = sum(sizes)
            right = sum(round(value * size) for value, size in zip(values, sizes, strict=True))
            parts = f" in {len(pairs)} folds" if len(pairs) > 1 else ""
            return Estimate(right / n, spread, *wilson(right, n), f"Wilson, {words.count(n, 'picture')}{parts}{equal}", len(values))
        if len(values) > 1:
            return Estimate(fmean(values), spread, *over_seeds(values)[1:], f"t, {len(values)} runs", len(values))
        return Estimate(values[0], None, None, None, "one run", 1)

    def _once(self, runs: int) -> bool:
        """Whether these runs tested each picture once: one run, or all folds of one seed."""
        folds = {run.config.get("dataset.fold") for run in self.done}
        return runs == 1 or (runs == len(folds) == self.done[0].config.get("dataset.folds"))

    def mean(self, what: str) -> float | None:
        """Of `seconds` or `parameters`."""
        values = [value for run in self.done if (value := getattr(run, what)) is not None]
        return fmean(values) if values else None

    @cached_property
    def alike(self) -> bool:
        """Whether no seed has changed anything: all its runs have given the same answers, to the last digit."""
        digests = {(words.at(run.record, "sha256") or {}).get(PREDICTIONS) for run in self.done}
        return len(self.done) > 1 and len(digests) == 1 and None not in digests

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.runs)

    @cached_property
    def began(self) -> tuple[float, float]:
        """When the first of its runs was begun, s since 1970, and its place among those that were begun with it."""
        found = ((words.at(run.record, "times.launched"), words.at(run.record, "group.number")) for run in self.runs)
        return min(
            ((when if words.known(when) else math.inf, at if words.known(at) else 0.0) for when, at in found), default=(math.inf, 0.0)
        )


def varying(rows: Sequence[Row], axes: Iterable[str]) -> list[str]:
    """The axes of which these rows have several values; to lack an axis is one."""
    return [axis for axis in axes if len({words.value(row.values.get(axis)) for row in rows}) > 1]


@dataclass(frozen=True)
class Board:
    """The rows that can stand side by side: of one data set, measured by one metric."""

    data: str
    metric: str
    axes: tuple[str, ...]
    rows: tuple[Row, ...]  # the best on val first; those without a figure last
    chosen: tuple[str, ...] = ()  # axes of which each row has the value that val has chosen: other values are no rows here

    @property
    def name(self) -> str:
        return f"{self.data}: {self.metric}"

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.metric in LOWER

    @cached_property
    def strengths(self) -> tuple[str, ...]:
        """The shifts that test was measured under, each strength by itself: noise-3."""
        names = {name: None for row in self.rows for run in row.done[:1] for name in words.at(run.record, "metrics") or {}}
        splits = [split for name in names for split, _, metric in [name.partition("/")] if metric == self.metric]
        return tuple(split for split in splits if split not in ("train", "val", "test"))

    @cached_property
    def shifts(self) -> tuple[str, ...]:
        """The same, where the strengths of one corruption are one: noise."""
        found: dict[str, list[str]] = {}
        for split in self.strengths:
            found.setdefault(gathered(f"{split}/{self.metric}").partition("/")[0], []).append(split)
        return tuple(kind if len(splits) > 1 else splits[0] for kind, splits in found.items())

    def of(self, split: str, row: Row) -> Estimate | None:
        return row.estimate(f"{split}/{self.metric}")

    def choose(self, keys: Iterable[str]) -> Board:
        """The same, where of rows that differ in these axes alone the best on val is left."""
        chosen = tuple(axis for axis in self.axes if axis in set(keys))
        left: dict[str, Row] = {}
        for row in sorted(self.rows, key=lambda row: not row.complete):  # stable: the best on val first, of those that miss no run
            rest = {key: value for key, value in row.values.items() if key not in chosen}
            left.setdefault(json.dumps(rest, sort_keys=True, default=str), row)
        kept = {id(row) for row in left.values()}
        return replace(self, rows=tuple(row for row in self.rows if id(row) in kept), chosen=chosen)

    @property
    def choice(self) -> str:
        """What is not shown, as a sentence; empty: all is."""
        return (
            f"Of rows that differ in {' and '.join(self.chosen)} alone the best on val is shown; results.csv has all."
            if self.chosen
            else ""
        )

    @cached_property
    def best(self) -> Row | None:
        """What val has chosen, by the mean over a row's runs; None: val has measured nothing. Rows that miss runs are no candidates."""
        return next((row for row in self.rows if row.complete and self.of("val", row)), None)

    def warnings(self) -> Iterator[str]:
        """Why its figures might mislead."""
        most = max((len(row.done) for row in self.rows), default=0)
        if fewer := [row for row in self.rows if 0 < len(row.done) < most]:
            yield f"{_some(fewer)}: fewer runs than another row's {most}; their means are less sure"
        if lacking := [row for row in self.rows if row.done and not row.complete]:
            yield f"{_some(lacking)}: not all runs are done, and those that are may be the luckier ones"
        if (done := [row for row in self.rows if row.done]) and not any(self.of("val", row) for row in done):
            yield "no row has a figure on val: nothing could be chosen, and the order is by name"
        for row in done:
            monitors = {str(run.config.get("trainer.monitor", "")) for run in row.done}
            if any(monitor.startswith("test/") for monitor in monitors):
                yield f"{row.name}: its epoch was chosen on test (trainer.monitor), so its figure on test is too good"
        if len({words.at(run.record, "data.fingerprint") for row in done for run in row.done}) > 1:
            yield "not all runs had the same pictures or splits (their fingerprints differ); what is tested in pairs is what they share"


def read(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """All runs in these folders and below, each once, by path. Raises UserError for a folder that is none or holds no run."""
    found: dict[Path, None] = {}
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise UserError(Problem("DIR", str(folder), "no such folder; name one with run folders in it, as regraft train tells it"))
        inside = sorted(_inside(path, DEEPEST))
        if not inside:
            raise UserError(Problem("DIR", str(folder), f"holds no run folder (no {RECORD} in it or below)"))
        found |= dict.fromkeys(inside)
    return [Run.read(RunFolder(path)) for path in found]


@cache
def gathered(name: str) -> str:
    """`noise/accuracy` of `noise-3/accuracy`; any other metric is itself."""
    split, _, metric = name.partition("/")
    kind, _, strength = split.rpartition("-")
    return f"{kind}/{metric}" if kind and corruptions.parsed(f"{kind}:{strength}") else name


def _inside(path: Path, deep: int) -> Iterator[Path]:
    if (path / RECORD).is_file():
        yield path
    elif deep:
        with os.scandir(path) as entries:
            folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
        for folder in folders:
            yield from _inside(Path(folder), deep - 1)


def flat(config: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value): `model` -> resnet, `model.depth` -> 50; lists are values."""
    for name, value in config.items():
        dotted = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping) and value:
            yield from flat(value, dotted)
        elif name == "name" and key and "." not in key:
            yield key, value
        else:
            yield dotted, value


def boards(runs: Sequence[Run], axes: Sequence[str] | None = None) -> list[Board]:
    """The runs as rows, those of each data set and metric by themselves. `axes`: the keys that make rows apart; None: those that the
    commands have named and that differ, at most 8. Raises UserError for an axis that no run has."""
    whole = [run for run in runs if run.config]
    if axes and (strange := [axis for axis in axes if not any(axis in run.config for run in whole)]):
        known = sorted({key for run in whole for key in run.config})
        raise UserError(Problem("--axes", strange[0], f"no run has this key; there are {', '.join(known[:20])}, ..."))
    of: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in whole:
        data = str(words.at(run.record, "data.name") or run.config.get("dataset", words.DASH))
        of.setdefault((data, words.metric(run.record)), {}).setdefault(_altered(run), []).append(run)
    return [
        _board(f"{data}{altered if len(some) > 1 else ''}", metric, each, axes)
        for (data, metric), some in sorted(of.items())
        for altered, each in sorted(some.items())
    ]


def _altered(run: Run) -> str:
    """How a set's pictures or answers are altered: it is another set then, and its figures stand beside none of the other's."""
    corruption = run.config.get("dataset.corruption")
    renamed = [
        f"{key.removeprefix('dataset.rename.')} as {value}" for key, value in run.config.items() if key.startswith("dataset.rename.")
    ]
    return (f" under {corruption}" if corruption else "") + (f" renamed {', '.join(renamed)}" if renamed else "")


def _board(data: str, metric: str, runs: Sequence[Run], axes: Sequence[str] | None) -> Board:
    varied = differing(runs)
    of: dict[str, list[Run]] = {}
    for run in runs:
        of.setdefault(json.dumps([run.config.get(key) for key in varied], default=str), []).append(run)
    shown = tuple(axes) if axes else _named(runs, varied)
    rows = [_row(each, shown, varied) for each in of.values()]
    if not axes and len({row.name for row in rows}) < len(rows):  # what was named does not tell them all apart
        shown = tuple(dict.fromkeys((*shown, *varied)))
        rows = [_row(each, shown, varied) for each in of.values()]
    lower = metric in LOWER

    def place(row: Row) -> tuple[bool, float, str]:
        value = row.estimate(f"val/{metric}")
        return value is None, (value.value if lower else -value.value) if value else 0.0, row.name

    return Board(words.plain(data, 60), words.plain(metric, 40), shown, tuple(sorted(rows, key=place)))


def _row(runs: Sequence[Run], axes: Sequence[str], varied: Sequence[str]) -> Row:
    config = runs[0].config
    values = {axis: config[axis] for axis in (*axes, *varied) if axis in config}
    name = ", ".join(f"{axis}={words.value(config[axis])}" for axis in axes if axis in config) or "all runs"
    return Row(name, values, tuple(sorted(runs, key=lambda run: (str(run.config.get("seed")), run.path))))


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys whose values differ between runs and decide a result, in the configs' order."""
    seen: dict[str, set[str]] = {}
    for number, run in enumerate(runs):
        for key, value in run.config.items():
            held = seen.setdefault(key, {""} if number else set())  # "": the runs before did not have it
            held.add(repr(value))
        for key in seen.keys() - run.config.keys():
            seen[key].add("")
    return [key for key, values in seen.items() if len(values) > 1 and key not in CHOICELESS and not _silent(key)]


def _silent(key: str) -> bool:
    return any(key == silent or key.startswith(f"{silent}.") for silent in SILENT)


def _named(runs: Sequence[Run], varied: Sequence[str]) -> tuple[str, ...]:
    """Of the keys that differ, those that commands have named; others follow from them."""
    said = {word.lstrip("+").partition("=")[0] for run in runs for word in run.record.get("overrides") or []}
    named = [key for key in varied if key in said or f"{key}.name" in said]
    return tuple((named or list(varied))[:AXES])


def _some(rows: Sequence[Row]) -> str:
    shown = "; ".join(row.name for row in rows[:3])
    return f"{shown} and {len(rows) - 3} more" if len(rows) > 3 else shown


def finite(value: float | None) -> bool:
    """Whether there is a figure at all."""
    return value is not None and math.isfinite(value)
