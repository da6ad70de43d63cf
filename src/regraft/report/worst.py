"""The worst mistakes of a run on test as a sheet of pictures: other classes than the true ones, and tags that are not there.

Places are computed in pixels, since then nothing can overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.errors import UserError
from regraft.report import canvas
from regraft.report.canvas import DPI, GREY, MARGIN, RULE, VERMILION
from regraft.report.words import DASH

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from polars import DataFrame

    from regraft.datasets.source import Source

MOST = 24  # mistakes on a sheet


@dataclass(frozen=True)
class Mistake:
    """A test picture that was taken for another class, or given a wrong tag, and the score of that."""

    id: str
    truth: str
    predicted: str
    score: float | None  # None: the run diverged, and its scores are no numbers


def mistakes(answers: DataFrame, most: int = MOST) -> list[Mistake]:
    """The wrong answers that were given with the highest score, the worst first; equal ones in the order of their ids."""
    import polars

    wrong = answers.filter(polars.col("truth") != polars.col("predicted"))
    worst = wrong.sort("score", "id", descending=[True, False], nulls_last=True).head(most)
    return [Mistake(**row) for row in worst.select("id", "truth", "predicted", "score").iter_rows(named=True)]


def wrong_tags(answers: DataFrame, names: Sequence[str], most: int = MOST) -> list[Mistake]:
    """Pictures with a tag that they do not have, the one of the highest score of each, the highest first; then those that only lack tags,
    the one of the lowest score of each, the lowest first. `answers` with the scores of all tags, in the order of `names`."""
    found = []
    for name, truth, said, scores in answers.select("id", "truth", "predicted", "scores").iter_rows():
        true, told = (set(text.split("|")) - {""} for text in (truth, said))
        score = dict(zip(names, scores or [], strict=False))
        extra = [tag for tag in score if tag in told - true]
        missed = [tag for tag in score if tag in true - told]
        shown = ", ".join(sorted(true)) or "no tag"
        if extra:
            worst = max(extra, key=lambda tag: score[tag])
            found.append((0, -score[worst], Mistake(name, shown, worst, score[worst])))
        elif missed:
            worst = min(missed, key=lambda tag: score[tag])
            found.append((1, score[worst], Mistake(name, shown, f"no {worst}", score[worst])))
    return [mistake for *_, mistake in sorted(found, key=lambda each: (each[0], each[1], each[2].id))[:most]]


BOX, PITCH, ROW, HEAD = 150, 174, 206, 92  # px of a sheet: a picture, from one to the next, from row to row, headline


LINE = "truth → prediction and its score, the surest first"


def sheet(worst: Sequence[Mistake], total: int, source: Source, line: str = LINE) -> Image:
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
    canvas.head(figure, "Worst mistakes on test", line)
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
