"""Pictures with boxes: what is there and what was found, on one picture or as a sheet of a run's test pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import Problem, UserError
from regraft.report import canvas
from regraft.report.canvas import BLUE, DPI, GREY, MARGIN, RULE, VERMILION

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from regraft.datasets.source import Source

SHOWN = "boxes.png"
MOST = 24  # pictures on a sheet
SURE = 0.5  # boxes of a lower score are not drawn
SIDE, GAP, HEAD = 200, 16, 92  # px of a sheet: a picture's longer side, between two, headline
LONGEST = 1600  # px of a single picture that is drawn


class Drawn(NamedTuple):
    """One box on a picture."""

    name: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 as parts of the picture
    score: float | None  # None: it is the truth


def read(text: str) -> list[Drawn]:
    """A picture's boxes out of predictions.parquet."""
    return [Drawn(row["class"], tuple(row["box"]), row.get("score")) for row in json.loads(text)]


def told(rows: Iterable[Sequence[float]], names: Sequence[str]) -> list[Drawn]:
    """What a run answers for one picture, [k, 6] as the detect task has it; a score of 0 is no box."""
    return [Drawn(names[int(number)], (x0, y0, x1, y1), score) for x0, y0, x1, y1, score, number in rows if score > 0]


def draw(picture: np.ndarray, boxes: Sequence[Drawn], *, least: float = SURE) -> Image:
    """The picture, uint8 [h, w, 3], with its boxes: found ones of at least this score solid, with name and score, true ones dashed."""
    height, width = picture.shape[:2]
    factor = min(1.0, LONGEST / max(height, width))
    with canvas.styled():
        figure = canvas.figure(max(1, width * factor), max(1, height * factor))
        _place(figure, picture, boxes, (0, 0, figure.get_figwidth() * DPI, canvas.tall(figure)), least)
        return canvas.image(figure)


def sheet(rows: Sequence[tuple[str, str, str]], source: Source) -> Image:
    """(id, truth, found) of each picture, as in predictions.parquet -> the first of them, each with what is there and what was found."""
    shown = [(name, [*read(truth), *read(found)]) for name, truth, found in rows[:MOST]]
    columns = min(max(len(shown), 4), 6)  # no narrower than the headline
    deep = max(math.ceil(len(shown) / columns), 1)
    figure = canvas.figure(2 * MARGIN + columns * (SIDE + GAP) - GAP, HEAD + deep * (SIDE + GAP) + 8)
    line = f"true boxes dashed, found ones of a score of {SURE} or more solid" if shown else "No test pictures."
    canvas.head(figure, "Boxes on test", line)
    samples = {sample.id: sample for sample in source.samples}
    for number, (name, boxes) in enumerate(shown):
        left = MARGIN + number % columns * (SIDE + GAP)
        below = canvas.tall(figure) - HEAD - number // columns * (SIDE + GAP) - SIDE
        try:
            picture = source.read(samples[name])
        except (KeyError, UserError):
            figure.text(
                (left + SIDE / 2) / (figure.get_figwidth() * DPI),
                (below + SIDE / 2) / canvas.tall(figure),
                "not in the dataset",
                ha="center",
                size=7,
                color=GREY,
            )
            continue
        longer = max(picture.shape[:2])
        high, wide = (SIDE * side / longer for side in picture.shape[:2])
        place = (left + (SIDE - wide) / 2, below + (SIDE - high) / 2, wide, high)
        _place(figure, picture, boxes, place, SURE)
    return canvas.image(figure)


def drawn(predictions: Path, source: Source) -> Image:
    """The sheet of a run's predictions.parquet. Raises UserError for predictions that are not of boxes, or can't be read."""
    import polars

    try:
        rows = polars.read_parquet(predictions, columns=["id", "truth", "predicted"]).head(MOST).rows()
        with canvas.styled():
            return sheet(rows, source)
    except (polars.exceptions.PolarsError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(Problem(str(predictions), None, f"holds no boxes that can be read ({error})")) from None


def _place(figure: Figure, picture: np.ndarray, boxes: Sequence[Drawn], place: tuple[float, float, float, float], least: float) -> None:
    """The picture and its boxes on a figure; `place`: left, below, width and height in px."""
    from matplotlib.patches import Rectangle

    axes = canvas.axes(figure, *place)
    axes.set_axis_off()
    axes.imshow(picture, extent=(0, 1, 1, 0), aspect="auto", interpolation="antialiased")
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=RULE, linewidth=0.5))
    for name, (x0, y0, x1, y1), score in sorted(boxes, key=lambda each: (each.score is not None, each.score or 0)):
        if score is not None and score < least:
            continue
        colour: Any = VERMILION if score is None else BLUE
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2, linestyle="-" if score else "--"))
        if score is not None:
            words = canvas.fitted(f"{name} {score:.2f}", max((1 - x0) * place[2], 1), 6)
            inside = y0 * place[3] < canvas.pixels(8)  # no room above the box
            style: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
            axes.text(x0, y0, words, size=6, color="white", va="top" if inside else "bottom", ha="left", bbox=style)
