"""Lines of text with what was read in them, as a sheet of a run's test lines: the mistakes first, what is true below each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.errors import UserError
from regraft.report import canvas
from regraft.report.canvas import DPI, GREY, INK, MARGIN, RULE, VERMILION
from regraft.report.words import count

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from regraft.datasets.source import Source

MOST = 24  # lines on a sheet
COLUMNS, WIDE, GAP, HEAD = 3, 320, 28, 92  # columns; px: a line's picture, between two, headline
LEADING = 22  # px from text to text
NONE = "nothing"  # where no character was read


def sheet(rows: Sequence[tuple[str, str, str]], source: Source) -> Image:
    """(id, truth, read) of each test line -> the wrong ones, in the order given, then right ones, as far as there is room."""
    import numpy as np
    from matplotlib.patches import Rectangle

    wrong = [row for row in rows if row[1] != row[2]]
    shown = [*wrong, *(row for row in rows if row[1] == row[2])][:MOST]
    samples = {sample.id: sample for sample in source.samples}
    pictures = [_picture(source, samples.get(name)) for name, _, _ in shown]
    tall = max((picture.shape[0] for picture in pictures if picture is not None), default=2 * LEADING)
    pitch = tall + 2 * LEADING + GAP
    figure = canvas.figure(2 * MARGIN + COLUMNS * (WIDE + GAP) - GAP, HEAD + max(1, math.ceil(len(shown) / COLUMNS)) * pitch)
    line = f"{len(rows) - len(wrong):,} of {count(len(rows), 'line')} right; below each what was read, and where that is wrong the truth"
    canvas.head(figure, "Read on test", line if rows else "No test lines.")
    across, up = round(figure.get_figwidth() * DPI), round(canvas.tall(figure))
    for number, ((_, truth, read), picture) in enumerate(zip(shown, pictures, strict=True)):
        x, y = MARGIN + number % COLUMNS * (WIDE + GAP), HEAD + number // COLUMNS * pitch
        frame = (x - 0.5, up - y - tall - 0.5)
        figure.add_artist(Rectangle(frame, WIDE + 1, tall + 1, fill=False, edgecolor=RULE, linewidth=0.5, transform=None))
        if picture is None:
            figure.text((x + WIDE / 2) / across, 1 - (y + tall / 2) / up, "not in the dataset", ha="center", size=7, color=GREY)
        else:
            figure.figimage(np.repeat(picture[..., None], 3, 2), x, up - y - picture.shape[0])
        texts = [(read or NONE, INK)] if read == truth else [(f"✗ {read or NONE}", VERMILION), (truth or NONE, INK)]
        for place, (text, colour) in enumerate(texts, 1):
            where = 1 - (y + tall + LEADING * place) / up
            figure.text(x / across, where, canvas.fitted(text, WIDE, 8), size=8, color=colour, va="baseline")
    return canvas.image(figure)


def _picture(source: Source, sample: object) -> np.ndarray | None:
    """A line as dark ink on white, uint8 [h, WIDE]; None: it is not to be had."""
    import numpy as np
    from PIL import Image

    try:
        ink = source.read(sample) if sample else None  # type: ignore[arg-type]
    except UserError:
        return None
    if ink is None:
        return None
    paper = Image.fromarray(np.rint(255 * (1 - ink.clip(0, 1))).astype(np.uint8))
    scale = WIDE / paper.width
    return np.asarray(paper.resize((WIDE, max(1, round(paper.height * scale))), Image.Resampling.LANCZOS))
