"""One picture, decoded right: whatever a file holds becomes uint8 [h, w, 3], or an error that names the file and the remedy."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from regraft.errors import Problem, UserError

MAX_PIXELS = 100_000_000  # a larger picture is refused by its header: decoding it could exhaust the memory
Image.init()  # loads PIL's readers now, and not in the first of many threads
# What PIL was built with, of the kinds that are wanted: never those that start other programs (EPS).
FORMATS = tuple(kind for kind in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP") if kind in Image.OPEN)
WHITE = (255, 255, 255)
SKIP = "or leave such files out with dataset.on_error=skip"

# EXIF orientation -> what makes the picture upright (Exif 2.32, tag 0x0112; 1 is upright already)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112

# PIL warns of sizes that are judged here, and of EXIF blocks that don't matter. A filter for good, since swapping filters around each call
# is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def content(path: Path) -> bytes:
    """What a file that a user names holds. Raises UserError for one that can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(Problem(str(path), None, f"can't be read ({error.strerror})")) from None


def decode(data: bytes, name: str) -> np.ndarray:
    """The first frame, upright, over white, as uint8 [h, w, 3]; `name` is the file's, for errors.

    16-bit grey keeps its whole range (0..65535 -> 0..255), and so do 32-bit integers within it; floats within 0..1 are times 255. All
    other integers and floats have no agreed range: they are stretched from their own least to their own greatest value.
    Raises UserError: empty, not a picture, truncated, too large, values that are not numbers.
    """
    image = _open(data, name)
    try:
        image.load()
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # each of PIL's decoders has exceptions of its own
        raise _refused(name, f"is damaged or truncated ({_said(error)}); fetch or save it again") from None
    orientation = _orientation(image)
    try:
        colour = _colour(image, name)
    except ValueError as error:
        raise _refused(name, f"has colours of the kind {image.mode}, which can't be converted ({_said(error)}); save it as RGB") from None
    if orientation in UPRIGHT:
        colour = colour.transpose(UPRIGHT[orientation])
    return np.array(colour)


def changed(name: str) -> UserError:
    """Of a file whose bytes are not those that the set was opened with: what is known of it, and kept, belongs to another picture."""
    remedy = "its bytes have changed since the set was opened; start again (where its time stamp was kept, touch it first)"
    return UserError(Problem(name, None, remedy))


def probe(data: bytes, name: str) -> tuple[int, int]:
    """Height and width in px as the header has them, without decoding. Raises UserError: empty, not a picture, too large."""
    width, height = _open(data, name).size
    return height, width


def fit(picture: np.ndarray, size: int, how: Literal["crop", "squash", "pad"], crop: float = 1.0) -> np.ndarray:
    """uint8 [h, w, 3] -> [size, size, 3], bicubic and antialiased.

    crop: the shorter side becomes `size` / `crop`, then the centre is cut out; squash: both sides become `size`; pad: the longer side
    becomes `size`, centred on white.
    """
    if how == "squash":
        return np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    if how == "crop":
        picture = _middle(picture)
    height, width = picture.shape[:2]
    side = min(width, height) if how == "crop" else max(width, height)
    part = crop if how == "crop" else 1.0
    wide, high = (max(1, round(length * size / part / side)) for length in (width, height))
    whole = Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC)
    # For both: pasting at a negative offset cuts the centre out. int() rounds toward zero, so an odd pixel is at the right and below.
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(whole, (int((size - wide) / 2), int((size - high) / 2)))
    return np.array(square)


def _middle(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture that is longer than 8 of its shorter side: resized whole, 1 x 100,000 px would not fit in memory."""
    height, width = picture.shape[:2]
    most = 8 * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return np.ascontiguousarray(picture[top : height - top, left : width - left])


def _open(data: bytes, name: str) -> Image.Image:
    """The picture with its header read and its size allowed."""
    if not data:
        raise _refused(name, "is empty (0 bytes); fetch or save it again")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(name, "") from None
    except Image.UnidentifiedImageError:
        raise _refused(name, f"is not a picture that can be read ({', '.join(FORMATS)} can); save it as PNG or JPEG") from None
    except Exception as error:  # each of PIL's readers has exceptions of its own
        raise _refused(name, f"has a damaged header ({_said(error)}); fetch or save it again") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} px, ")
    if not width or not height:
        raise _refused(name, f"has no pixels ({width} x {height}); fetch or save it again")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none, or none that can be read: viewers show such a picture as it is stored."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block raises many kinds; the pixels are sound
        return 1


def _colour(image: Image.Image, name: str) -> Image.Image:
    """Any of PIL's modes as RGB. Raises ValueError for a mode that PIL does not convert."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Grey of more than 8 bits [h, w] as uint8 [h, w]."""
    least, most = values.min(), values.max()
    if not np.isfinite([least, most]).all():
        raise _refused(name, "holds values that are not finite numbers (NaN or infinity); save it as an 8-bit or 16-bit picture")
    low, high = float(least), float(most)
    if values.dtype.kind in "iu":
        low, high = (0.0, 65535.0) if low >= 0 and high <= 65535 else (low, high)
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    span = high - low or 1.0  # a picture of one value becomes black
    return np.rint((values.astype(np.float64) - low) * 255 / span).astype(np.uint8)


def _too_large(name: str, size: str) -> UserError:
    return _refused(name, f"is too large ({size}more than {MAX_PIXELS // 1_000_000} megapixels); save it smaller")


def _refused(name: str, remedy: str) -> UserError:
    return UserError(Problem(name, None, f"{remedy}, {SKIP}"))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
