"""A test picture made worse: noise, blur, JPEG and contrast at five strengths, each a function of the picture alone.

Strengths are those of ImageNet-C (Hendrycks and Dietterich 2019, ICLR, and their published code) for 224 px; a blur is as wide as
it would be there, in parts of the shorter side.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

STRENGTHS = range(1, 6)
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of white = 1
BLUR = (1, 2, 3, 4, 6)  # standard deviation in px of 224
QUALITY = (25, 18, 15, 10, 7)  # of JPEG, of 100
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of the distance from the mean
SIDE = 224


class Corruption(NamedTuple):
    """A kind and its strength, 1..5."""

    kind: str
    strength: int

    @property
    def name(self) -> str:
        """`noise-3`"""
        return f"{self.kind}-{self.strength}"

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [h, w, c] to the same shape. The same picture gives the same noise, whatever else is read."""
        return KINDS[self.kind](picture, self.strength - 1)


def parsed(word: str) -> list[Corruption] | None:
    """`noise` is all five strengths, `noise:3` one; None: no corruption is called so."""
    if word not in WORDS:
        return None
    kind, _, strength = word.partition(":")
    return [Corruption(kind, each) for each in ([int(strength)] if strength else STRENGTHS)]


def _noise(picture: np.ndarray, at: int) -> np.ndarray:
    import numpy as np

    key = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
    draw = np.random.Generator(np.random.Philox(np.frombuffer(key[:16], np.uint64)))
    noise = draw.normal(0.0, 255 * NOISE[at], picture.shape)
    return _clipped(picture + noise)


def _blur(picture: np.ndarray, at: int) -> np.ndarray:
    from PIL import ImageFilter

    radius = BLUR[at] * min(picture.shape[:2]) / SIDE
    return _through(picture, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(picture: np.ndarray, at: int) -> np.ndarray:
    from PIL import Image

    def again(image: Image.Image) -> Image.Image:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=QUALITY[at])
        return Image.open(held)

    return _through(picture, again)


def _contrast(picture: np.ndarray, at: int) -> np.ndarray:
    mean = picture.mean(axis=(0, 1), keepdims=True)
    return _clipped((picture - mean) * CONTRAST[at] + mean)


def _clipped(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _through(picture: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """By pillow, which knows grey pictures without a third axis."""
    import numpy as np
    from PIL import Image

    grey = picture.shape[2] == 1
    found = np.asarray(change(Image.fromarray(picture[..., 0] if grey else picture)))
    return found[..., None] if grey else found


KINDS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"noise": _noise, "blur": _blur, "jpeg": _jpeg, "contrast": _contrast}
WORDS = (*KINDS, *(f"{kind}:{strength}" for kind in KINDS for strength in STRENGTHS))  # all that `parsed` knows
