"""Music as a picture: pitches by name, bars as lines; what was given and played on to it, or what is true and what was said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.report import canvas
from regraft.report.canvas import BLUE, DPI, GREY, INK, MARGIN, RULE, VERMILION
from regraft.report.words import count

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

QUARTERS = 4  # of a bar
ROW, HEAD, FOOT, NAMES = 14, 92, 56, 44  # px: a pitch, the headline, below the roll, left of it
WIDTHS = (700, 2000)  # px of a roll, least and most
STEP = 18  # px of a step, where there is room
APART = 24  # px between two words of the legend
BAR = 60  # px between two numbers of bars at least
BLACK = "#f2f2f2"  # behind the black keys


def picture(roll: np.ndarray, prime: int, names: Sequence[str], bar: int, title: str) -> Image:
    """bool [T, P] of which the first `prime` steps were given; `names` of the P pitches from the lowest; `bar`: steps of a bar."""
    import numpy as np

    steps = len(roll)
    given = np.arange(steps)[:, None] < prime
    line = f"{count(prime, 'step')} given, {count(steps - prime, 'step')} played on; lines are bars"
    legend = (("■ played on", VERMILION), ("■ given", BLUE))
    return _panels([("", [(roll & given, BLUE), (roll & ~given, VERMILION)])], names, bar, title, line, legend)


def compared(truth: np.ndarray, said: np.ndarray, names: Sequence[str], bar: int, title: str) -> Image:
    """What is true above, and below what was said of each step when all before it was heard; both bool [T, P]."""
    hits, either = int((truth & said).sum()), int((truth | said).sum())
    line = f"{hits:,} of {count(int(truth.sum()), 'note')} foretold, {either - int(truth.sum()):,} others too; each step from all before it"
    legend = (("■ foretold, wrong", VERMILION), ("■ foretold, right", BLUE), ("■ true", INK))
    parts = [("true", [(truth, INK)]), ("foretold", [(said & truth, BLUE), (said & ~truth, VERMILION)])]
    return _panels(parts, names, bar, title, line, legend)


def _panels(
    panels: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]],
    names: Sequence[str],
    bar: int,
    title: str,
    line: str,
    legend: Sequence[tuple[str, str]],
) -> Image:
    """Rolls one below the other, on the same pitches: the name of each, and its notes [T, P] by colour."""
    import numpy as np

    every = np.logical_or.reduce([notes for _, parts in panels for notes, _ in parts])
    sounding = np.flatnonzero(every.any(axis=0))
    low, high = (max(0, sounding[0] - 1), min(len(names), sounding[-1] + 2)) if len(sounding) else (0, len(names))
    steps = len(every)
    width = min(max(STEP * steps, WIDTHS[0]), WIDTHS[1])
    height = ROW * int(high - low)
    apart = bar * max(1, -(-BAR * steps // (bar * width)))  # steps between two numbers
    with canvas.styled():
        figure = canvas.figure(width + NAMES + 2 * MARGIN, HEAD + len(panels) * (height + FOOT))
        canvas.head(figure, title, line)
        across, up = figure.get_figwidth() * DPI, canvas.tall(figure)
        for number, (name, parts) in enumerate(panels, 1):
            axes = canvas.axes(figure, MARGIN + NAMES, up - HEAD - number * (height + FOOT) + FOOT, width, height)
            axes.set_xlim(0, max(steps, 1))
            axes.set_ylim(low - 0.5, high - 0.5)
            for each in range(low, high):
                if "#" in names[each]:
                    axes.axhspan(each - 0.5, each + 0.5, color=BLACK, linewidth=0, zorder=0)
            axes.vlines(range(bar, steps, bar), low - 0.5, high - 0.5, colors=RULE, linewidth=0.6, zorder=1)
            for notes, colour in parts:
                for each in np.flatnonzero(notes.any(axis=0)).tolist():
                    edges = np.flatnonzero(np.diff(notes[:, each].astype(np.int8), prepend=0, append=0))
                    held = [(first, last - first) for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
                    axes.broken_barh(held, (each - 0.42, 0.84), facecolor=colour, edgecolor="white", linewidth=0.4)
            axes.set_yticks(range(low, high), names[low:high], size=6, color=INK)
            axes.tick_params(axis="y", length=0)
            axes.set_xticks(range(0, steps, apart), [str(at // bar + 1) for at in range(0, steps, apart)])
            axes.set_xlabel(f"bar, {name}" if name else "bar")
            axes.spines[["left", "bottom"]].set_color(GREY)
        right = across - MARGIN
        for word, colour in legend:
            figure.text(right / across, 1 - 36 / up, word, size=8, color=colour, ha="right", va="baseline")
            right -= canvas.wide(word, 8) + APART
        return canvas.image(figure)
