"""What a Deep Belief Network has learnt, to look at: the filters of its lowest machine, and pictures that it dreams."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from regraft.report import canvas
from regraft.report.canvas import DPI, MARGIN

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIDE, GAP, HEAD = 72, 6, 88  # px: of a tile, between two, and above all
MOST = 100  # tiles on a sheet


def filters(weights: np.ndarray) -> Image:
    """The weights of hidden units, [h, s, s], those of the largest norm first: grey is 0, and white the largest of the unit."""
    import numpy as np

    order = np.argsort(-np.square(weights).sum((1, 2)), kind="stable")[:MOST]
    largest = np.abs(weights[order]).max((1, 2), keepdims=True, initial=1e-12)
    line = f"{len(order)} of {len(weights)} hidden units of the lowest machine: black holds a unit off, white switches it on"
    return sheet(weights[order] / largest / 2 + 0.5, "Filters", line)


def samples(pictures: np.ndarray, steps: int, tuned: bool = False) -> Image:
    """What `models.dbn.dream` gave after so many steps: [n, h, w], values in 0..1. `tuned`: the weights have learnt the task since, and no
    longer what they dream of."""
    since = "; the task has changed the weights since they learnt to dream" if tuned else ""
    return sheet(pictures[:MOST], "Dreams", f"samples after {steps:,} Gibbs steps between the two highest layers{since}")


def sheet(pictures: np.ndarray, title: str, line: str) -> Image:
    """Pictures [n, h, w], values in 0..1, side by side; a tiny one keeps its pixels visible."""
    import numpy as np
    from PIL import Image

    columns = min(max(len(pictures), 9), 12)  # no narrower than the lines
    rows = math.ceil(len(pictures) / columns)
    width = max(2 * MARGIN + columns * (SIDE + GAP) - GAP, 2 * MARGIN + math.ceil(max(canvas.wide(line, 8), canvas.wide(title, 10))))
    with canvas.styled():
        figure = canvas.figure(width, HEAD + rows * (SIDE + GAP) - GAP + MARGIN)
        canvas.head(figure, title, line)
        for number, picture in enumerate(pictures):
            tile = Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))
            factor = SIDE / max(tile.size)
            size = max(1, round(tile.width * factor)), max(1, round(tile.height * factor))
            tile = tile.resize(size, Image.Resampling.NEAREST if factor >= 3 else Image.Resampling.LANCZOS).convert("RGB")
            x, y = MARGIN + number % columns * (SIDE + GAP), HEAD + number // columns * (SIDE + GAP)
            figure.figimage(np.asarray(tile), x, round(figure.get_figheight() * DPI) - y - tile.height)
        return canvas.image(figure)
