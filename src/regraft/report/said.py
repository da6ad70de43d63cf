"""A picture with what was said of it in lines below: its classes and their scores, its caption, the text that was read in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.report import canvas
from regraft.report.canvas import DPI, GREY, INK, RULE
from regraft.report.words import plain

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

LEAST, LONGEST = 360, 1600  # px: of what is drawn, a picture's longer side at least and at most
AROUND, LEADING = 16, 26  # px: around all, and from line to line
SIZE = 8  # pt
DRAWN = ".predicted.png"  # how the name of such a picture ends
MOST = 8  # lines that one text takes at most


def enlarged(picture: np.ndarray, least: int = LEAST) -> np.ndarray:
    """uint8 [h, w, 3] -> the same picture, its longer side from `least` to LONGEST px; the pixels of a tiny one stay visible."""
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    longer = max(height, width)
    factor = min(LONGEST / longer, max(1.0, least / longer))
    if factor == 1:
        return picture
    scale = math.ceil(factor) if factor >= 3 and longer * math.ceil(factor) <= LONGEST else factor
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST if factor >= 3 else Image.Resampling.LANCZOS))


def below(picture: np.ndarray, lines: Sequence[tuple[str, str]]) -> Image:
    """The picture, uint8 [h, w, 3], and below it each line: what is on its left (wrapped where nothing is on its right), and on its right.

    The first line is the answer; the others are paler.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    shown = enlarged(picture)
    high, wide = shown.shape[:2]
    room = max(wide, LEAST)
    rows: list[tuple[str, str, str]] = []
    for number, (left, right) in enumerate(lines):
        texts = [canvas.fitted(left, room - canvas.wide(right, SIZE) - AROUND, SIZE)] if right else wrapped(left, room)
        rows += [(text, right, GREY if number else INK) for text in texts]
    with canvas.styled():
        figure = canvas.figure(room + 2 * AROUND, high + 2 * AROUND + LEADING * len(rows) + (AROUND if rows else 0))
        across, up = round(figure.get_figwidth() * DPI), round(canvas.tall(figure))
        x = (across - wide) // 2
        frame = (x - 0.5, up - AROUND - high - 0.5)
        figure.add_artist(
            Rectangle(frame, wide + 1, high + 1, fill=False, edgecolor=RULE, linewidth=0.5, transform=None, zorder=-1, snap=False)
        )
        figure.figimage(np.asarray(shown), x, up - AROUND - high)
        for number, (left, right, colour) in enumerate(rows, 1):
            y = 1 - (AROUND + high + LEADING * number) / up
            figure.text(AROUND / across, y, left, size=SIZE, color=colour, va="baseline")
            figure.text(1 - AROUND / across, y, right, size=SIZE, color=colour, va="baseline", ha="right")
        return canvas.image(figure)


def wrapped(text: str, room: float) -> list[str]:
    """A text in lines of `room` px, broken between words; a word that is too long is cut, and so is what takes more than MOST lines."""
    lines = [""]
    for word in plain(text, 2000).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and canvas.wide(longer, SIZE) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MOST:
        lines = [*lines[: MOST - 1], f"{lines[MOST - 1]} …"]
    return [canvas.fitted(line, room, SIZE) for line in lines]
