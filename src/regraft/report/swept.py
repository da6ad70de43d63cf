"""The runs of a sweep side by side; those that differ in seed or fold alone are added up, and are no choice.

All text that comes from files goes through `plain` into rich's Text: no markup, no control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from regraft.errors import UserError
from regraft.record import RunFolder
from regraft.report import words
from regraft.report.statistics import over_seeds, wilson
from regraft.tasks import LOWER

CHOICELESS = ("seed", "dataset.fold")  # keys of which no value is a choice
AGAIN = {"failed": "sweep.retry=true tries what has failed again", "interrupted": "the same command goes on with what was interrupted"}
TROUBLE = 160  # letters of what went wrong that a sweep's table tells; all of it was said when it happened


@dataclass(frozen=True)
class Run:
    """One run of a sweep, as far as its folder can be read: a damaged one does not hide the others."""

    name: str
    config: dict[str, Any]
    record: dict[str, Any]
    status: str
    trouble: str  # the first line of what went wrong

    @classmethod
    def read(cls, folder: RunFolder) -> Run:
        try:
            config, record = folder.config, folder.record
        except UserError as error:
            return cls(folder.path.name, {}, {}, "damaged", words.first(error))
        status = words.status(record)
        trouble = words.plain(words.first(words.error(record)), TROUBLE) if status in AGAIN else ""
        return cls(folder.path.name, config, record, status, trouble)

    def measured(self, split: str) -> float | None:
        """The task's first metric; None: the run is not done, or the split has none."""
        value = words.at(self.record, f"metrics.{split}/{words.metric(self.record)}")
        return float(value) if self.status == "done" and words.known(value) else None

    @property
    def seconds(self) -> Any:
        """What it took; of a group's time, its share."""
        share = words.at(self.record, "times.share")
        return share if words.known(share) else words.at(self.record, "times.total")

    def line(self, axes: Sequence[str], mark: str) -> str:
        """The run's row of the table, for narrow terminals."""
        accuracies = {split: words.accuracy(self.record, split) for split in ("val", "test")}
        figures = [f"{split} {value} ({interval})" for split, (value, interval) in accuracies.items() if value != words.DASH]
        seconds = self.seconds
        return mark + ", ".join([self.swept(axes), *figures, *([words.duration(seconds)] if words.known(seconds) else [])])

    def swept(self, axes: Sequence[str]) -> str:
        return ", ".join(f"{axis}={words.value(words.at(self.config, axis))}" for axis in axes) if axes and self.config else self.name


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed or fold alone."""

    name: str  # the values of what they share; empty: of all runs
    runs: tuple[Run, ...]

    @property
    def value(self) -> float | None:
        """What it is chosen by: its runs' mean on val; None where one of them has none."""
        values = [run.measured("val") for run in self.runs]
        return None if None in values else mean(value for value in values if value is not None)

    def told(self) -> tuple[str, str] | None:
        """Its folds or seeds in one figure, labelled; None: there are none that could be added up."""
        if words.known(words.at(self.runs[0].config, "dataset.folds")):
            return self._folds()
        done = {
            words.at(run.config, "seed"): run for run in self.runs if run.measured("test") is not None or run.measured("val") is not None
        }
        if len(done) < 2 or len(done) < len(self.runs):
            return None
        figures = []
        for split in ("val", "test"):
            values = [value for run in done.values() if (value := run.measured(split)) is not None]
            if len(values) == len(done):
                middle, low, high = over_seeds(values)
                figures.append(f"{split} {middle:.3f} ({low:.3f}{words.DASH}{high:.3f})")
        return f"{len(done)} seeds", f"{self.name}{': ' if self.name else ''}{', '.join(figures)}"

    def _folds(self) -> tuple[str, str] | None:
        """The accuracy over all pictures, each tested once, and its 95% interval; of another metric the mean."""
        done = {words.at(run.config, "dataset.fold"): run.record for run in self.runs if run.status == "done"}
        if len(done) != words.at(self.runs[0].config, "dataset.folds") or len(self.runs) != len(done):
            return None  # a fold is missing, or several seeds share it: these pictures would count twice
        label, before = f"{len(done)} folds", f"{self.name}{': ' if self.name else ''}"
        n, metric = sum(words.at(record, "data.sizes.test") or 0 for record in done.values()), words.metric(self.runs[0].record)
        values = [words.at(record, f"metrics.test/{metric}") for record in done.values()]
        if not all(map(words.known, values)):
            return None
        if metric != "accuracy":
            return label, f"{before}{metric} {mean(values):.3f}, the mean of the folds"
        right = sum(round(value * words.at(record, "data.sizes.test")) for value, record in zip(values, done.values(), strict=True))
        low, high = wilson(right, n)
        return label, f"{before}{right} of {n} right, {right / n:.3f} ({low:.3f}{words.DASH}{high:.3f})"


def table(folders: Sequence[RunFolder], axes: Sequence[str]) -> RenderableType:
    """One row for each run, in the order given. The best setting is chosen, and its runs are marked, on val."""
    runs = [Run.read(folder) for folder in folders]
    settings, lower = _settings(runs, axes), any(words.metric(run.record) in LOWER for run in runs)
    choice = not axes or bool(set(axes) - set(CHOICELESS))
    best = (min if lower else max)((value for each in settings if (value := each.value) is not None), default=None) if choice else None
    chosen = [each for each in settings if best is not None and each.value == best]
    marks = {id(run): "*" for each in chosen for run in each.runs}
    shown = words.Fitting(
        _runs(runs, axes, marks),
        words.listing([(run.status, run.line(axes, "* " if id(run) in marks else "")) for run in runs]),
    )
    several = any(len(each.runs) > 1 for each in settings)
    told = [each for setting in settings if (each := setting.told())]
    parts = [words.listing(each) for each in (told, _troubles(runs, axes)) if each]
    return Constrain(Group(shown, Text(_choice(len(chosen), choice, lower, several)), *parts), words.WIDTH)


def _settings(runs: Sequence[Run], axes: Sequence[str]) -> list[Setting]:
    """In the order of their first runs; each damaged run by itself."""
    others = [axis for axis in axes if axis not in CHOICELESS]
    of: dict[str, list[Run]] = {}
    for run in runs:
        of.setdefault("" if not others and run.config else run.swept(others), []).append(run)
    return [Setting(name, tuple(each)) for name, each in of.items()]


def _runs(runs: Sequence[Run], axes: Sequence[str], marks: dict[int, str]) -> Table:
    table = words.table()
    table.add_column("")
    for axis in axes:
        table.add_column(Text(words.plain(axis, 40)))
    first = next((words.metric(run.record) for run in runs), "accuracy")
    what = "" if first == "accuracy" else f" {first}"
    for name in (f"val{what}", "95%", f"test{what}", "95%", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for run in runs:
        numbers = [text for split in ("val", "test") for text in words.accuracy(run.record, split)]
        seconds, mark = words.figure(run.seconds, ".1f"), marks.get(id(run), "")
        cells = [mark, *(words.value(words.at(run.config, axis)) for axis in axes), *numbers, seconds, run.status]
        table.add_row(*map(Text, cells), style="bold" if mark else None)
    return table


def _troubles(runs: Sequence[Run], axes: Sequence[str]) -> list[tuple[str, str]]:
    """One cause is told once, however many runs it stopped."""
    alike: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.trouble:
            alike.setdefault((run.status, run.trouble), []).append(run.swept(axes))
    told = [
        (status, f"{who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''}: {trouble}") for (status, trouble), who in alike.items()
    ]
    return told + [("", AGAIN[status]) for status in AGAIN if any(run.status == status for run in runs)]


def _choice(best: int, choice: bool, lower: bool, several: bool) -> str:
    if not choice:
        return "Folds and seeds are no choice: none is marked."
    if not best:
        return (
            "No run has a figure on val, so none is marked."
            if not several
            else "No setting has a figure on val for all its seeds: none is marked."
        )
    ties = f" ({best} {'settings' if several else 'runs'} tie)" if best > 1 else ""
    means = ", by the mean of its seeds" if several else ""
    return f"* best on val{means}{', where less is better' if lower else ''}{ties}. The choice was made on val, not on test."
