"""A run's pictures: learning curves, and of what was said of test what suits its kind: confusion, worst mistakes, boxes, lines, a roll.

Places are computed in pixels, since then nothing can overlap. Nothing touches pyplot, and no text is read as mathematics or TeX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError
from regraft.record import METRICS, PREDICTIONS, Metrics, RunFolder
from regraft.report import boxes, canvas, readings, rolls
from regraft.report.canvas import BLUE, DPI, GREY, INK, RULE, VERMILION
from regraft.report.tables import PICTURES
from regraft.report.words import plain
from regraft.report.worst import mistakes, sheet, wrong_tags

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from polars import DataFrame

    from regraft.datasets.source import Source

CURVES, CONFUSION, MISTAKES, BOXES, LINES, ROLL, LOOKS, FILTERS, DREAMS = PICTURES
DASHED = (0, (4, 3))
RING: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.2}


def draw(folder: RunFolder, source: Source) -> list[Path]:
    """Write curves.png, and where the run has predictions what suits their kind (`MADE`); gives back what was written.

    Raises UserError for predictions that can't be read.
    """
    record = folder.record
    given = answers(folder / PREDICTIONS)
    with canvas.styled():
        made = {CURVES: curves(Metrics(folder / METRICS).rows(), record.get("kept"), record.get("metric", "accuracy"))}
        if given is not None and source.kind in MADE:
            made |= MADE[source.kind](folder, given, source)
    for name, image in made.items():
        canvas.save(image, folder / name)
    return [folder / name for name in made]


def _of_classes(folder: RunFolder, given: DataFrame, source: Source) -> dict[str, Image]:
    seen = source.input == "pictures"
    pairs = given.select("truth", "predicted").rows()
    found = {CONFUSION: confusion(pairs, _classes(folder, source), "pictures" if seen else "cases")}
    if seen:
        found[MISTAKES] = sheet(mistakes(given), len(given), source)
    return found


def _of_tags(folder: RunFolder, given: DataFrame, source: Source) -> dict[str, Image]:
    wrong = wrong_tags(given, _classes(folder, source))
    line = "what is true → a tag that is not (its score), the surest first; then tags that were missed"
    return {MISTAKES: sheet(wrong, len(given), source, line)} if source.input == "pictures" else {}


def _of_boxes(folder: RunFolder, given: DataFrame, source: Source) -> dict[str, Image]:
    return {BOXES: boxes.drawn(folder / PREDICTIONS, source)}


def _of_texts(folder: RunFolder, given: DataFrame, source: Source) -> dict[str, Image]:
    lines = given.select("id", "truth", "predicted").rows()
    return {LINES: readings.sheet(lines, source)} if source.input == "array" else {}


def _of_frames(folder: RunFolder, given: DataFrame, source: Source) -> dict[str, Image]:
    """The first test piece."""
    from regraft import midi  # and numpy with it

    if not len(given):
        return {}
    [(name, truth, said)] = given.select("id", "truth", "predicted").head(1).rows()
    classes = _classes(folder, source)
    true = _roll(truth, classes)
    step = folder.config["dataset"].get("step")
    title = f"The first test piece: {plain(name, 40)}"
    bar = rolls.QUARTERS * midi.STEPS.get(step, 1)
    return {ROLL: rolls.compared(true, _roll(said, classes)[: len(true)], classes, bar, title)}


MADE = {"class": _of_classes, "tags": _of_tags, "boxes": _of_boxes, "text": _of_texts, "frames": _of_frames}


def _classes(folder: RunFolder, source: Source) -> Sequence[str]:
    return (folder.record.get("data") or {}).get("classes") or source.classes


def _roll(words: str, names: Sequence[str]) -> np.ndarray:
    """The words of `tasks.frames` as bool [T, P]."""
    import numpy as np

    place = {name: number for number, name in enumerate(names)}
    steps = words.split(" ") if words else []
    found = np.zeros((len(steps), len(names)), bool)
    for step, word in enumerate(steps):
        found[step, [place[name] for name in word.split("+") if name in place]] = True
    return found


# Learning curves


NAMES = {
    "cider": "CIDEr",
    "nll": "Negative log-likelihood",
    "cer": "Character error rate",
    "accuracy": "Accuracy",
    "map": "Mean average precision",
    "mae": "Mean absolute error",
}


def curves(rows: Sequence[Mapping[str, str]], kept: Mapping[str, Any] | None, metric: str = "accuracy") -> Image:
    """Loss and the task's first metric over the epochs, train and val; `rows` are those of metrics.csv."""
    figure = canvas.figure(1350, 508)
    phases = _phases(rows)
    if not phases:
        figure.text(0.5, 0.5, "No epoch was recorded.", ha="center", size=10, color=GREY)
        return canvas.image(figure)
    best = (kept or {}).get("epoch")
    best = best if best in _line(rows, f"val/{metric}")[0] else None
    for place, (measure, title) in enumerate((("loss", "Loss"), (metric, NAMES.get(metric, metric)))):
        axes = canvas.axes(figure, 80 + 670 * place, 64, 570, 340)
        lines = {split: _line(rows, f"{split}/{measure}") for split in ("train", "val")}
        _panel(axes, title, lines, phases, best)
    _legend(figure, best)
    return canvas.image(figure)


def _phases(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each phase."""
    grouped = ((name, [int(row["epoch"]) for row in group]) for name, group in groupby(rows, key=lambda row: row["phase"]))
    return [(name, min(epochs), max(epochs)) for name, epochs in grouped]


def _line(rows: Sequence[Mapping[str, str]], metric: str) -> tuple[list[int], list[float]]:
    """Epochs and values; what is not finite leaves a gap."""
    found = [(int(row["epoch"]), float(row["value"])) for row in rows if row["metric"] == metric]
    return [epoch for epoch, _ in found], [value if math.isfinite(value) else math.nan for _, value in found]


def _panel(
    axes: Axes,
    title: str,
    lines: Mapping[str, tuple[list[int], list[float]]],
    phases: Sequence[tuple[str, int, int]],
    kept: int | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", size=10, weight="bold", pad=24)
    axes.set_xlabel("epoch")
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    first, last = phases[0][1], phases[-1][2]
    axes.set_xlim(first - 0.5, last + 0.5)
    few = last - first < 40
    for split, colour in (("train", BLUE), ("val", VERMILION)):
        epochs, values = lines[split]
        axes.plot(epochs, values, color=colour, linewidth=1.4, marker="o" if few else None, markersize=2.6, label=split)
    _name_phases(axes, phases)
    epochs, values = lines["val"]
    if kept in epochs:
        axes.axvline(kept, color=GREY, linewidth=0.7, linestyle=DASHED, zorder=1)
        axes.plot([kept], [values[epochs.index(kept)]], **RING)


def _name_phases(axes: Axes, phases: Sequence[tuple[str, int, int]]) -> None:
    """A thin line between phases, and each one's name above its epochs; its number where the name has no room."""
    low, high = axes.get_xlim()
    pixels = axes.get_window_extent().width / (high - low)
    for number, (name, first, last) in enumerate(phases):
        if number:
            axes.axvline(first - 0.5, color=GREY, linewidth=0.6, ymax=1.07, clip_on=False)
        room = (last - first + 1) * pixels - 8
        shown = canvas.fitted(name, room, 7.5, least=5) or canvas.fitted(str(number + 1), room, 7.5)
        axes.text((first + last) / 2, 1.025, shown, transform=axes.get_xaxis_transform(), ha="center", size=7.5, color=GREY)


def _legend(figure: Figure, kept: int | None) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=1.8, label=split) for split, colour in (("train", BLUE), ("val", VERMILION))]
    if kept is not None:
        handles.append(Line2D([], [], color=GREY, linewidth=0.7, linestyle=DASHED, label=f"kept: epoch {kept}", **RING))
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1330 / 1350, 1.0), ncols=3, frameon=False, fontsize=8)


# The confusion matrix


LARGEST, LEAST_CELL = 950, 3  # px of the matrix, and of the side of a cell


def confusion(pairs: Sequence[tuple[str, str]], classes: Sequence[str], what: str = "pictures") -> Image:
    """How often each class (rows) was taken for each (columns); `pairs` of truth and prediction, each of one of `what`. Shaded by the share
    of the row."""
    import numpy as np

    counts = _counts(pairs, classes)
    n, side = len(classes), min(max(44 * len(classes), 420), LARGEST)
    cell = side / n
    size = 8.0 if cell >= 20 else 6.5  # of the labels, pt
    step = math.ceil(canvas.pixels(size) * 1.1 / cell)
    named = list(range(0, n, step)) if step <= 4 else []  # fewer names than that help nobody
    labels = [canvas.fitted(classes[index], 190, size) for index in named]
    widest = max((canvas.wide(label, size) for label in labels), default=0.0)
    level = widest < 0.9 * cell * step
    left, below = 62 + widest, 62 + (canvas.pixels(size) if level else widest)
    width, height = round(max(left + side + 130, 760)), round(110 + side + below)
    figure = canvas.figure(width, height)
    axes = canvas.axes(figure, left, below, side, side)
    axes.spines[:].set_visible(True)
    together = math.ceil(LEAST_CELL * n / side)  # neighbouring classes that share a cell: dots of one pixel would not be seen
    shades = _shares(counts, together)
    shown = axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks(named, labels, size=size, rotation=0 if level else 90)
    axes.set_yticks(named, labels, size=size)
    axes.tick_params(length=2, pad=2)
    groups = f", {together} to a cell" if together > 1 else ""
    order = "" if labels else f" ({n:,} classes in the record's order{groups})"
    figure.text((left + side / 2) / width, 14 / height, f"predicted{order}", ha="center", va="bottom")
    figure.text(14 / width, (below + side / 2) / height, f"truth{order}", rotation=90, ha="left", va="center")
    written = _write_counts(axes, counts, shades, cell)
    canvas.head(figure, "Confusion on test", f"{np.trace(counts):,} of {len(pairs):,} right" + (f"; numbers are {what}" if written else ""))
    _scale(figure, shown, left + side + 24, below, side)
    return canvas.image(figure)


def _shares(counts: np.ndarray, together: int) -> np.ndarray:
    """Each count's share of its row, 0 where a row is empty; so many neighbouring classes are counted as one."""
    import numpy as np

    starts = np.arange(0, len(counts), together)
    counts = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def _counts(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> np.ndarray:
    """[truth, predicted]. Raises UserError for a class that the record does not name."""
    import numpy as np

    index = {name: at for at, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for pair in pairs:
        if strange := [name for name in pair if name not in index]:
            raise UserError(Problem(PREDICTIONS, strange[0], "the record has no such class; predictions and record are of different runs"))
        counts[index[pair[0]], index[pair[1]]] += 1
    return counts


def _write_counts(axes: Axes, counts: np.ndarray, shades: np.ndarray, cell: float) -> bool:
    """Each count in its cell, where cells are large enough for all of them; a zero is left blank."""
    import numpy as np

    digits = len(str(counts.max(initial=0)))
    pixels = min(18.0, 0.6 * cell, 0.84 * cell / (0.64 * digits))  # a digit is 0.64 of its font's size wide
    if pixels < 10.5:
        return False
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shades[row, column] > 0.62 else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center_baseline", size=pixels * 72 / DPI, color=colour)
    return True


def _scale(figure: Figure, shown: Any, left: float, below: float, side: float) -> None:
    axes = canvas.axes(figure, left, below, 14, side)
    bar = figure.colorbar(shown, cax=axes, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", ".25", ".5", ".75", "1"])
    bar.ax.tick_params(length=2, labelsize=7)
    bar.set_label("share of the true class", size=7)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]


# Predictions


def answers(path: Path, shift: str | None = None) -> DataFrame | None:
    """predictions.parquet as id, truth, predicted, the scores and the highest of them; None where there is none. Of shifted.parquet: one
    shift's rows.

    Raises UserError for one that can't be read.
    """
    import polars

    if not path.is_file():
        return None
    score = polars.col("scores").list.max().fill_nan(None)  # what was predicted has the highest score
    try:
        file = polars.scan_parquet(path, glob=False, hive_partitioning=False)  # a folder's name is no pattern
        if shift is not None:
            file = file.filter(polars.col("shift") == shift)
        return file.select("id", "truth", "predicted", "scores", score=score).collect()
    except (polars.exceptions.PolarsError, OSError) as error:
        said = plain(next(iter(str(error).splitlines()), ""), 100)
        raise UserError(Problem(str(path), None, f"can't be read ({said}); run the same command again in another folder")) from None
