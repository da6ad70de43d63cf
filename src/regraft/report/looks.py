"""Where a captioner looked for each word: a row for each picture, and in it one tile for each word, red where the word was read off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.report import canvas
from regraft.report.canvas import GREY, MARGIN, RULE
from regraft.vocabulary import decoded

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

BOX, PITCH, ROW, HEAD = 110, 122, 172, 92  # px: a picture, from one to the next, from row to row, headline
RED = (213, 94, 0)  # canvas.VERMILION
STRONG = 0.8  # how much of the red is seen where most was looked
WORDS = 12  # of a caption that are shown


class Looked(NamedTuple):
    """A picture, what was said of it, and where it looked."""

    picture: np.ndarray  # uint8 [h, w, 3], as it was fed: the places of the map are parts of it
    words: list[str]
    weights: np.ndarray  # [words, h, w], any scale
    truth: str  # the references


def looked(head: Any, x: Tensor, pictures: Sequence[np.ndarray], truths: Sequence[str], names: Sequence[str]) -> list[Looked]:
    """What a `captioning.Captioner` with attention says of the maps [b, c, h, w] that enter it, and where it looks."""
    words, weights = head.looks(x)
    said = [decoded(row, names).split() for row in words.tolist()]
    rows = zip(pictures, said, weights.cpu().numpy(), truths, strict=True)
    return [Looked(picture, each, seen[: len(each)], truth) for picture, each, seen, truth in rows]


LINE = "each picture, then the words that were said of it; red: read off there; below what is true"


def sheet(rows: Sequence[Looked], line: str = LINE) -> Image:
    """One row for each picture: itself, then the words in their order."""
    with canvas.styled():
        if not rows:
            figure = canvas.figure(760, 200)
            canvas.head(figure, "Where it looked", "No pictures.")
            return canvas.image(figure)
        tiles = 1 + max(4, *(min(len(row.words), WORDS) for row in rows))
        width = 2 * MARGIN + max(tiles * PITCH - (PITCH - BOX), canvas.wide(line, 8))
        figure = canvas.figure(width, HEAD + len(rows) * ROW)
        canvas.head(figure, "Where it looked", line)
        for number, row in enumerate(rows):
            down = HEAD + number * ROW
            _tile(figure, _fitted(row.picture), MARGIN, down, "")
            _write(figure, canvas.fitted(row.truth, width - 2 * MARGIN, 7), MARGIN, down + BOX + 42, GREY)
            for at, (word, weights) in enumerate(zip(row.words[:WORDS], row.weights, strict=False), 1):
                _tile(figure, _reddened(row.picture, weights), MARGIN + at * PITCH, down, canvas.fitted(word, BOX, 7))
        return canvas.image(figure)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """[BOX, BOX, 3]: the whole picture as a square, as a net is fed."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((BOX, BOX), Image.Resampling.LANCZOS))


def _reddened(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture in pale grey, the redder the more a place counted: [BOX, BOX, 3]. `weights` [h, w]; the largest is the reddest."""
    import numpy as np
    from PIL import Image

    most = float(weights.max()) or 1.0
    shares = np.asarray(weights / most, np.float32)
    alpha = np.asarray(Image.fromarray(shares).resize((BOX, BOX), Image.Resampling.BILINEAR)).clip(0, 1)[..., None] * STRONG
    grey = 128 + _fitted(picture).mean(2, keepdims=True) / 2
    return np.rint(grey * (1 - alpha) + np.array(RED) * alpha).astype(np.uint8)


def _tile(figure: Any, pixels: np.ndarray, x: int, y: int, text: str) -> None:
    """Pixels [BOX, BOX, 3] with a line of text below; (x, y) from the top left, px."""
    from matplotlib.patches import Rectangle

    height = canvas.tall(figure)
    frame = (x - 0.5, height - y - BOX - 0.5)
    figure.add_artist(Rectangle(frame, BOX + 1, BOX + 1, fill=False, edgecolor=RULE, linewidth=0.5, transform=None))
    figure.figimage(pixels, x, round(height) - y - BOX)
    _write(figure, text, x, y + BOX + 20, canvas.INK)


def _write(figure: Any, text: str, x: int, y: int, colour: str) -> None:
    figure.text(x / (figure.get_figwidth() * canvas.DPI), 1 - y / canvas.tall(figure), text, size=7, color=colour, va="baseline")
