"""A figure whose places are in pixels, since then nothing can overlap: our style, text that fits, and small files.

Nothing touches pyplot, and no text is read as mathematics or TeX.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from regraft.files import whole
from regraft.report.words import plain

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 150
MARGIN = 24  # px, from the edges
BYTES = 300_000  # a picture that takes more is written with 256 colours
INK, GREY, RULE = "#222222", "#6b6b6b", "#d4d4d4"
MARK = ("Software", "regraft")  # of our PNG files
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's palette: told apart by colour-blind readers too
STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "font.size": 8,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
# Where DejaVu Sans has no letters for a class's name, one of these may; matplotlib warns of those that are not installed.
FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial Unicode MS")


@contextmanager
def styled() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says; and no warnings of letters that no font has."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "font.family": families()})
        yield


@cache
def families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


def figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(round(width) / DPI, round(height) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tall(figure: Figure) -> float:
    """Height of a figure, px."""
    return figure.get_figheight() * DPI


def axes(figure: Figure, left: float, below: float, width: float, height: float) -> Axes:
    """Axes at this place, px from the figure's lower left."""
    across, up = figure.get_figwidth() * DPI, tall(figure)
    return figure.add_axes((left / across, below / up, width / across, height / up))


def head(figure: Figure, title: str, line: str) -> None:
    width, height = figure.get_figwidth() * DPI, tall(figure)
    figure.text(MARGIN / width, 1 - 36 / height, title, size=10, weight="bold", va="baseline")
    figure.text(MARGIN / width, 1 - 64 / height, line, size=8, color=GREY, va="baseline")


def pixels(points: float) -> float:
    return points * DPI / 72


@cache
def renderer() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)


def wide(text: str, points: float) -> float:
    """px that a text takes."""
    from matplotlib.font_manager import FontProperties

    return float(renderer().get_text_width_height_descent(text, FontProperties(family=families(), size=points), False)[0])


def fitted(text: str, room: float, points: float, least: int = 2) -> str:
    """The text in printable letters, cut with an ellipsis to `room` px; empty where not even the `least` letters fit."""
    shown = plain(text, 200)
    if wide(shown, points) <= room:
        return shown
    low, high = 0, len(shown)  # as many letters as fit: between these
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if wide(shown[:middle].rstrip() + "…", points) <= room else (low, middle - 1)
    return shown[:low].rstrip() + "…" if low >= least else ""


def image(figure: Figure) -> Image:
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    width, height = canvas.get_width_height()
    return Image.frombuffer("RGBA", (width, height), bytes(canvas.buffer_rgba()), "raw", "RGBA", 0, 1).convert("RGB")


def save(image: Image, path: Path) -> None:
    """The picture as a PNG that says it is ours, whole; photographs in 256 colours, which is a third of the size."""
    import io

    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(*MARK)

    def encoded(picture: Image) -> bytes:
        file = io.BytesIO()
        picture.save(file, format="PNG", dpi=(DPI, DPI), pnginfo=mark)
        return file.getvalue()

    data = encoded(image)
    if len(data) > BYTES:
        data = encoded(image.quantize(256))
    with whole(path) as part:
        part.write_bytes(data)


def ours(path: Path) -> bool:
    """Whether the file is a PNG that `save` has written."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except Exception:  # each of PIL's readers has exceptions of its own: whatever it is, it is not ours
        return False
