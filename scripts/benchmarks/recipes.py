"""Recipes side by side: the runs of a sweep over `row`, their seeds folded into means with intervals, as a table and as pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import yaml

from benchmarks.table import machine
from regraft.report import canvas
from regraft.report.statistics import over_seeds, wilson

LEARNT = {"majority": "nothing", "handcrafted": "by hand"} | dict.fromkeys(("probe", "last_stages", "fine_tune", "lp_ft"), "ImageNet")
COLOURS = {"nothing": canvas.GREY, "by hand": "#E69F00", "from random weights": canvas.BLUE, "ImageNet": canvas.VERMILION}
APART = 0.022  # of accuracy, between two names at the lines' ends
ALL = "all"  # the point of the second plot at which every train picture is there


class Run(NamedTuple):
    """One done run, as a line of the csv."""

    row: str
    per_class: int | None
    seed: int
    train: float  # accuracies
    val: float
    test: float
    pictures: int  # of test
    seconds: float  # of a group's time, its share
    launched: float  # s since 1970
    finished: float


@dataclass(frozen=True)
class Found:
    """One recipe's runs over seeds."""

    row: str
    per_class: int | None
    runs: Sequence[Run]

    @property
    def features(self) -> str:
        """Where its features come from."""
        return LEARNT.get(self.row, "from random weights")

    def mean(self, name: str) -> float:
        return mean(getattr(run, name) for run in self.runs)

    @property
    def test(self) -> list[float]:
        return [run.test for run in self.runs]

    @property
    def steady(self) -> bool:
        """Whether every seed gives the same: then the test set's size alone leaves it unsure."""
        return len(set(self.test)) == 1

    def interval(self) -> tuple[float, float]:
        """95% of the mean of test over seeds (Student's t); where all are equal, of the one accuracy (Wilson's, over the test pictures)."""
        if self.steady:
            pictures = self.runs[0].pictures
            return wilson(round(self.test[0] * pictures), pictures)
        return over_seeds(self.test)[1:]


def read(folder: Path) -> list[Found]:
    """The done runs of a sweep over `row`, by recipe and number of train pictures."""
    of: dict[tuple[str, int | None], list[Run]] = {}
    for path in folder.glob("*/record.json"):
        record, config = json.loads(path.read_text()), yaml.safe_load((path.parent / "config.yaml").read_text())
        if record["status"] == "done":
            times, row, most = record["times"], config["row"], config["dataset"]["per_class"]
            measured = [record["metrics"][f"{split}/accuracy"] for split in ("train", "val", "test")]
            took = times.get("share") or times["total"]
            facts = (*measured, record["data"]["sizes"]["test"], took, times["launched"], times["finished"])
            of.setdefault((row, most), []).append(Run(row, most, config["seed"], *facts))
    found = [Found(row, most, sorted(runs, key=lambda run: run.seed)) for (row, most), runs in of.items()]
    return sorted(found, key=lambda each: (each.row, each.per_class or math.inf))


def table(found: Sequence[Found], folder: Path, command: str) -> None:
    """talk.md, talk.csv and talk.png, the best on val first."""
    ranked = sorted(found, key=lambda each: -each.mean("val"))
    _csv(ranked, folder / "talk.csv")
    lines = ["| row | features | train | val | test | 95% interval of test | seconds a run |", "|---|---|---|---|---|---|---|"]
    for each in ranked:
        low, high = each.interval()
        figures = " | ".join(f"{each.mean(split):.3f}" for split in ("train", "val", "test"))
        interval = f"{low:.3f} to {high:.3f}{' (W)' if each.steady else ''}"
        lines.append(f"| `{each.row}` | {each.features} | {figures} | {interval} | {each.mean('seconds'):.0f} |")
    runs = [run for each in found for run in each.runs]
    seeds = sorted({len(each.runs) for each in found})
    told = ", ".join(f"{key} {value}" for key, value in machine().items())
    wall = (max(run.finished for run in runs) - min(run.launched for run in runs)) / 60
    lines += [
        "",
        f"`{command}`; seeds in each row: {', '.join(map(str, seeds))}; {wall:.0f} min from the first run's start to the last one's",
    ]
    lines += [f"end; {told}.", "The interval is that of the mean over seeds (t), which says nothing of the test set's size: one run's own"]
    lines += ["interval (Wilson, 210 pictures) is about .06 to either side. (W): every seed gives the same, and this is Wilson's."]
    (folder / "talk.md").write_text("\n".join(lines) + "\n")
    with canvas.styled():
        _bars(ranked, folder / "talk.png")


def _bars(ranked: Sequence[Found], path: Path) -> None:
    """Test accuracy of each recipe, the best on val on top, each seed as a dot."""
    step = 40
    figure = canvas.figure(1100, 100 + step * len(ranked) + 80)
    canvas.head(
        figure,
        "Learned features, hand-made ones, and transfer",
        "test accuracy: mean over seeds, 95% interval (t; Wilson where every seed gives the same), each seed a dot",
    )
    axes = canvas.axes(figure, 170, 80, 860, step * len(ranked))
    for place, each in enumerate(reversed(ranked)):
        low, high = each.interval()
        colour, middle = COLOURS[each.features], mean(each.test)
        axes.barh(place, middle, height=0.62, color=colour, alpha=0.35)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
        axes.plot(each.test, [place] * len(each.test), "o", color=colour, markersize=3.5)
        axes.annotate(f"{middle:.3f}", (max(high, *each.test), place), (6, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(ranked)), [each.row for each in reversed(ranked)])
    axes.set_xlim(0, None)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlabel("test accuracy")
    for name, colour in COLOURS.items():
        axes.barh(0, 0, color=colour, alpha=0.6, label=name)
    axes.legend(loc="lower right", frameon=False, title="features")
    canvas.save(canvas.image(figure), path)


def few(found: Sequence[Found], whole: Sequence[Found], folder: Path, command: str) -> None:
    """few.csv and few.png: test accuracy over train pictures for each class, a line for each recipe; `whole`: the runs on all pictures."""
    _csv(found, folder / "few.csv")
    rows = list(dict.fromkeys(each.row for each in found))
    points = {row: [*(each for each in found if each.row == row), *(each for each in whole if each.row == row)] for row in rows}
    counts = [str(most) for most in sorted({each.per_class for each in found if each.per_class})] + [ALL]
    with canvas.styled():
        figure = canvas.figure(1100, 720)
        line = f"test accuracy; 95% interval (t) over seeds, each of which draws its own train pictures; {command}"
        canvas.head(figure, "How many pictures each way needs", line)
        axes = canvas.axes(figure, 110, 90, 800, 500)
        palette = dict(zip(rows, (canvas.VERMILION, "#E69F00", "#009E73", canvas.BLUE, "#CC79A7"), strict=False))
        for row, each in points.items():
            places, middles = [counts.index(str(one.per_class or ALL)) for one in each], [mean(one.test) for one in each]
            low, high = zip(*(one.interval() for one in each), strict=True)
            axes.plot(places, middles, "o-", color=palette[row], markersize=4, linewidth=1.4)
            axes.fill_between(places, low, high, color=palette[row], alpha=0.15, linewidth=0)
        height = 0.0
        for end, row in sorted((mean(each[-1].test), row) for row, each in points.items()):
            height = max(height, end)  # a name stands at its line's end, or higher where the one before needs the room
            axes.annotate(row, (len(counts) - 1, height), (10, 0), textcoords="offset points", va="center", color=palette[row], size=9)
            height += APART
        axes.set_xticks(range(len(counts)), counts)
        axes.set_xlabel("at most so many train pictures of each class")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, None)
        canvas.save(canvas.image(figure), folder / "few.png")


def _csv(found: Sequence[Found], path: Path) -> None:
    """A line for each run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "per_class", "seed", "train", "val", "test", "test_pictures", "seconds"])
        for run in (run for each in found for run in each.runs):
            figures = (f"{value:.4f}" for value in (run.train, run.val, run.test))
            writer.writerow([run.row, run.per_class or ALL, run.seed, *figures, run.pictures, f"{run.seconds:.1f}"])
