"""A run's pictures: learning curves, the confusion matrix, and the worst mistakes as a sheet.

Places are computed in pixels, since then nothing can overlap. Nothing touches pyplot, and no text is read as mathematics or TeX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError
from regraft.record import METRICS, PREDICTIONS, Metrics, RunFolder
from regraft.report import boxes, canvas
from regraft.report.canvas import BLUE, DPI, GREY, INK, MARGIN, RULE, VERMILION
from regraft.report.tables import PICTURES
from regraft.report.words import DASH, plain

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from polars import DataFrame

    from regraft.datasets.source import Source

CURVES, CONFUSION, MISTAKES, BOXES = PICTURES
MOST = 24  # mistakes on a sheet
DASHED = (0, (4, 3))
RING: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.2}


@dataclass(frozen=True)
class Mistake:
    """A test picture that was taken for another class, and the score of that class."""

    id: str
    truth: str
    predicted: str
    score: float | None  # None: the run diverged, and its scores are no numbers


def draw(folder: RunFolder, source: Source) -> list[Path]:
    """Write curves.png, and where the run has predictions confusion.png and mistakes.png of classes, or boxes.png of boxes; gives back what
    was written.

    Raises UserError for predictions that can't be read.
    """
    record = folder.record
    given = answers(folder / PREDICTIONS)
    with canvas.styled():
        made = {CURVES: curves(Metrics(folder / METRICS).rows(), record.get("kept"), record.get("metric", "accuracy"))}
        if given is not None and source.kind == "class":
            classes = (record.get("data") or {}).get("classes") or source.classes
            made[CONFUSION] = confusion(given.select("truth", "predicted").rows(), classes)
            made[MISTAKES] = sheet(mistakes(given), len(given), source)
    for name, image in made.items():
        canvas.save(image, folder / name)
    if given is not None and source.kind == "boxes":
        boxes.write(folder / PREDICTIONS, source, folder / BOXES)
        return [folder / CURVES, folder / BOXES]
    return [folder / name for name in made]


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


def confusion(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Image:
    """How often each class (rows) was taken for each (columns); `pairs` of truth and prediction. Shaded by the share of the row."""
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
    canvas.head(
        figure, "Confusion on test", f"{np.trace(counts):,} of {len(pairs):,} right" + ("; numbers are pictures" if written else "")
    )
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


# The worst mistakes


def mistakes(answers: DataFrame, most: int = MOST) -> list[Mistake]:
    """The wrong answers that were given with the highest score, the worst first; equal ones in the order of their ids."""
    import polars

    wrong = answers.filter(polars.col("truth") != polars.col("predicted"))
    worst = wrong.sort("score", "id", descending=[True, False], nulls_last=True).head(most)
    return [Mistake(**row) for row in worst.select("id", "truth", "predicted", "score").iter_rows(named=True)]


BOX, PITCH, ROW, HEAD = 150, 174, 206, 92  # px of a sheet: a picture, from one to the next, from row to row, headline


def sheet(worst: Sequence[Mistake], total: int, source: Source) -> Image:
    """The mistakes' pictures, each above its truth, what it was taken for, and the score of that."""
    if not worst:
        figure = canvas.figure(760, 200)
        canvas.head(
            figure, "No mistakes" if total else "No answers", f"All {total:,} test pictures are right." if total else "No test pictures."
        )
        return canvas.image(figure)
    columns = min(max(len(worst), 4), 6)  # no narrower than the headline
    rows = math.ceil(len(worst) / columns)
    width, height = 2 * MARGIN + columns * PITCH - (PITCH - BOX), HEAD + rows * ROW + 8
    figure = canvas.figure(width, height)
    canvas.head(figure, "Worst mistakes on test", "truth → prediction and its score, the surest first")
    samples = {sample.id: sample for sample in source.samples}
    for number, mistake in enumerate(worst):
        x, y = MARGIN + number % columns * PITCH, HEAD + number // columns * ROW
        _tile(figure, mistake, x, y, source, samples.get(mistake.id))
    return canvas.image(figure)


def _tile(figure: Figure, mistake: Mistake, x: int, y: int, source: Source, sample: Any) -> None:
    """One picture with its two lines of text; (x, y) from the top left, px."""
    import numpy as np
    from matplotlib.patches import Rectangle

    height, width = canvas.tall(figure), figure.get_figwidth() * DPI
    frame = Rectangle((x - 0.5, height - y - BOX - 0.5), BOX + 1, BOX + 1, fill=False, edgecolor=RULE, linewidth=0.5, transform=None)
    figure.add_artist(frame)

    def write(text: str, right: float, down: float, **style: Any) -> None:
        figure.text((x + right) / width, 1 - (y + down) / height, text, va="baseline", size=7, **style)

    try:
        picture = _boxed(source.read(sample)) if sample else None
    except UserError:
        picture = None
    if picture is None:
        write("picture can't be read" if sample else "not in the dataset", BOX / 2, BOX / 2, ha="center", color=GREY)
    else:
        right, down = (BOX - picture.width) // 2, (BOX - picture.height) // 2
        figure.figimage(np.asarray(picture), x + right, round(height) - y - down - picture.height)
    score = DASH if mistake.score is None else f"{mistake.score:.2f}"
    indent = canvas.wide("→ ", 7)  # the arrow is a text of its own: beside a name in Arabic it would be put on the other side
    write(canvas.fitted(mistake.truth, BOX, 7), 0, BOX + 18)
    write("→", 0, BOX + 36, color=VERMILION)
    write(canvas.fitted(mistake.predicted, BOX - indent - canvas.wide(score, 7) - 8, 7), indent, BOX + 36, color=VERMILION)
    write(score, BOX, BOX + 36, ha="right", color=GREY)


def _boxed(pixels: np.ndarray) -> Image:
    """The whole picture, as large as fits the box; a tiny one keeps its pixels visible instead of being blurred."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    factor = BOX / max(picture.size)
    tiny = factor >= 3
    scale = math.floor(factor) if tiny else factor
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


# Predictions


def answers(path: Path) -> DataFrame | None:
    """predictions.parquet as id, truth, predicted and the score of what was predicted; None where there is none.

    Raises UserError for one that can't be read.
    """
    import polars

    if not path.is_file():
        return None
    score = polars.col("scores").list.max().fill_nan(None)  # what was predicted has the highest score
    try:
        file = polars.scan_parquet(path, glob=False, hive_partitioning=False)  # a folder's name is no pattern
        return file.select("id", "truth", "predicted", score=score).collect()
    except (polars.exceptions.PolarsError, OSError) as error:
        said = plain(next(iter(str(error).splitlines()), ""), 100)
        raise UserError(Problem(str(path), None, f"can't be read ({said}); run the same command again in another folder")) from None
