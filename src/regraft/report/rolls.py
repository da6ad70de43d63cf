"""Music as a picture: what was given and what was played on to it in two colours, pitches by name, bars as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.report import canvas
from regraft.report.canvas import BLUE, DPI, GREY, INK, MARGIN, RULE, VERMILION
from regraft.report.words import count

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

ROW, HEAD, FOOT, NAMES = 14, 92, 56, 44  # px: a pitch, the headline, below the roll, left of it
WIDTHS = (700, 2000)  # px of a roll, least and most
STEP = 18  # px of a step, where there is room
APART = 24  # px between two words of the legend
BAR = 60  # px between two numbers of bars at least
BLACK = "#f2f2f2"  # behind the black keys


def picture(roll: np.ndarray, prime: int, names: Sequence[str], bar: int, title: str) -> Image:
    """bool [T, P] of which the first `prime` steps were given; `names` of the P pitches from the lowest; `bar`: steps of a bar."""
    import numpy as np

    sounding = np.flatnonzero(roll.any(axis=0))
    low, high = (max(0, sounding[0] - 1), min(len(names), sounding[-1] + 2)) if len(sounding) else (0, len(names))
    steps = len(roll)
    width = min(max(STEP * steps, WIDTHS[0]), WIDTHS[1])
    height = ROW * int(high - low)
    with canvas.styled():
        figure = canvas.figure(width + NAMES + 2 * MARGIN, height + HEAD + FOOT)
        canvas.head(figure, title, f"{count(prime, 'step')} given, {count(steps - prime, 'step')} played on; lines are bars")
        axes = canvas.axes(figure, MARGIN + NAMES, FOOT, width, height)
        axes.set_xlim(0, max(steps, 1))
        axes.set_ylim(low - 0.5, high - 0.5)
        for each in range(low, high):
            if "#" in names[each]:
                axes.axhspan(each - 0.5, each + 0.5, color=BLACK, linewidth=0, zorder=0)
        axes.vlines(range(bar, steps, bar), low - 0.5, high - 0.5, colors=RULE, linewidth=0.6, zorder=1)
        for each in sounding.tolist():
            edges = np.flatnonzero(np.diff(roll[:, each].astype(np.int8), prepend=0, append=0))
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                parts = [(first, min(last, prime), BLUE), (max(first, prime), last, VERMILION)]
                for start, end, colour in parts:
                    if start < end:
                        axes.broken_barh([(start, end - start)], (each - 0.42, 0.84), facecolor=colour, edgecolor="white", linewidth=0.4)
        axes.set_yticks(range(low, high), names[low:high], size=6, color=INK)
        axes.tick_params(axis="y", length=0)
        apart = bar * max(1, -(-BAR * steps // (bar * width)))  # steps between two numbers
        axes.set_xticks(range(0, steps, apart), [str(at // bar + 1) for at in range(0, steps, apart)])
        axes.set_xlabel("bar")
        across, up = figure.get_figwidth() * DPI, canvas.tall(figure)
        right = across - MARGIN
        for word, colour in (("■ played on", VERMILION), ("■ given", BLUE)):
            figure.text(right / across, 1 - 64 / up, word, size=8, color=colour, ha="right", va="baseline")
            right -= canvas.wide(word, 8) + APART
        axes.spines[["left", "bottom"]].set_color(GREY)
        return canvas.image(figure)
