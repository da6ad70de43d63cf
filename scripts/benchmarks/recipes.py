"""Recipes side by side: the runs of a sweep over `row`, their seeds folded into means with intervals, as a table and as pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import yaml
from scipy.stats import t

from benchmarks.table import machine
from regraft.report import canvas

LEARNT = {"majority": "nothing", "handcrafted": "by hand"} | dict.fromkeys(("probe", "last_stages", "fine_tune", "lp_ft"), "ImageNet")
COLOURS = {"nothing": canvas.GREY, "by hand": "#E69F00", "from random weights": canvas.BLUE, "ImageNet": canvas.VERMILION}
FIELDS = ("row", "per_class", "seeds", "val", "test", "low", "high", "sd", "seconds")


@dataclass(frozen=True)
class Found:
    """One recipe's runs over seeds: accuracies on val and test, and what one run took, s."""

    row: str
    per_class: int | None
    val: Sequence[float]
    test: Sequence[float]
    seconds: float

    @property
    def features(self) -> str:
        """Where its features come from."""
        return LEARNT.get(self.row, "from random weights")

    def interval(self) -> tuple[float, float]:
        """95% of the mean of test over seeds (Student's t); of one seed, or where all are equal, the value itself."""
        n, middle = len(self.test), mean(self.test)
        half = t.ppf(0.975, n - 1) * stdev(self.test) / math.sqrt(n) if n > 1 else 0.0
        return middle - half, middle + half

    def plain(self) -> dict[str, str]:
        low, high = self.interval()
        sd = stdev(self.test) if len(self.test) > 1 else 0.0
        figures = {"val": mean(self.val), "test": mean(self.test), "low": low, "high": high, "sd": sd}
        first = {"row": self.row, "per_class": "" if self.per_class is None else str(self.per_class), "seeds": str(len(self.test))}
        return first | {key: f"{value:.4f}" for key, value in figures.items()} | {"seconds": f"{self.seconds:.1f}"}


def read(folder: Path) -> list[Found]:
    """The done runs of a sweep over `row`, by recipe and number of train pictures."""
    runs: dict[tuple[str, int | None], list[tuple[int, float, float, float]]] = {}
    for path in folder.glob("*/record.json"):
        record, config = json.loads(path.read_text()), yaml.safe_load((path.parent / "config.yaml").read_text())
        if record["status"] == "done":
            measured = [record["metrics"][f"{split}/accuracy"] for split in ("val", "test")]
            seconds = record["times"].get("share") or record["times"]["total"]
            runs.setdefault((config["row"], config["dataset"]["per_class"]), []).append((config["seed"], *measured, seconds))
    found = [Found(row, most, *_columns(sorted(some))) for (row, most), some in runs.items()]
    return sorted(found, key=lambda each: (each.row, each.per_class or 0))


def _columns(runs: Sequence[tuple[int, float, float, float]]) -> tuple[list[float], list[float], float]:
    return [run[1] for run in runs], [run[2] for run in runs], mean(run[3] for run in runs)


def table(found: Sequence[Found], folder: Path, command: str) -> None:
    """talk.md, talk.csv and talk.png, the best on val first."""
    ranked = sorted(found, key=lambda each: -mean(each.val))
    _csv(ranked, folder / "talk.csv")
    lines = ["| row | features | val | test | 95% interval of test's mean | seconds a run |", "|---|---|---|---|---|---|"]
    for each in ranked:
        low, high = each.interval()
        figures = f"{mean(each.val):.3f} | {mean(each.test):.3f} | {low:.3f} to {high:.3f} | {each.seconds:.0f}"
        lines.append(f"| `{each.row}` | {each.features} | {figures} |")
    seeds = sorted({len(each.test) for each in found})
    told = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines += ["", f"`{command}`; seeds in each row: {', '.join(map(str, seeds))}; {told}."]
    lines += ["The interval is that of the mean over seeds (t), which says nothing of the test set's size: one run's own interval"]
    lines += ["(Wilson, 210 pictures) is about .06 to either side."]
    (folder / "talk.md").write_text("\n".join(lines) + "\n")
    with canvas.styled():
        _bars(ranked, folder / "talk.png")


def _bars(ranked: Sequence[Found], path: Path) -> None:
    """Test accuracy of each recipe, the best on val on top, each seed as a dot."""
    step = 40
    figure = canvas.figure(1100, 100 + step * len(ranked) + 80)
    canvas.head(
        figure, "Learned features, hand-made ones, and transfer", "test accuracy: mean over seeds, 95% interval (t), each seed a dot"
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


def few(found: Sequence[Found], folder: Path, command: str) -> None:
    """few.csv and few.png: test accuracy over train pictures for each class, a line for each recipe."""
    _csv(found, folder / "few.csv")
    lines: dict[str, list[Found]] = {}
    for each in found:
        lines.setdefault(each.row, []).append(each)
    with canvas.styled():
        figure = canvas.figure(1100, 720)
        canvas.head(
            figure, "Transfer pays when pictures are few", f"test accuracy over train pictures; 95% interval over seeds (t); {command}"
        )
        axes = canvas.axes(figure, 110, 90, 800, 500)
        palette = dict(zip(lines, (canvas.VERMILION, "#E69F00", "#009E73", canvas.BLUE, "#CC79A7"), strict=False))
        for row, points in lines.items():
            points = sorted(points, key=lambda each: each.per_class or 0)
            counts, middles = [each.per_class for each in points], [mean(each.test) for each in points]
            low, high = zip(*(each.interval() for each in points), strict=True)
            axes.plot(counts, middles, "o-", color=palette[row], markersize=4, linewidth=1.4)
            axes.fill_between(counts, low, high, color=palette[row], alpha=0.15, linewidth=0)
            axes.annotate(row, (counts[-1], middles[-1]), (10, 0), textcoords="offset points", va="center", color=palette[row], size=9)
        axes.set_xscale("log")
        counts = sorted({each.per_class for each in found if each.per_class})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("at most so many train pictures of each class")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, None)
        canvas.save(canvas.image(figure), folder / "few.png")


def _csv(found: Sequence[Found], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        rows: Sequence[Mapping[str, str]] = [each.plain() for each in found]
        writer.writerows(rows)
