"""Every kind of picture file becomes the exact pixels it stands for, or an error that names the file and the remedy."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regraft
from regraft.datasets import pictures
from regraft.datasets.pictures import decode, fit, probe
from regraft.errors import UserError

SRC = Path(regraft.__file__).parents[1]
RNG = np.random.default_rng(0)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A 1-bit PNG with a sound header of that size and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def grey(*values: int) -> list[list[list[int]]]:
    return [[[value] * 3 for value in values]]


def refusal(data: bytes, check: Any = decode) -> str:
    """The error's text, having seen that it names the file and the way out."""
    with pytest.raises(UserError) as caught:
        check(data, "cats/1.png")
    (problem,) = caught.value.problems
    assert problem.key == "cats/1.png"
    assert problem.given is None
    assert "dataset.on_error=skip" in problem.remedy
    return problem.remedy


SIXTEEN = np.array([[0, 128, 129, 256, 32768, 65535]], np.uint16)
SCALED = grey(0, 0, 1, 1, 128, 255)  # value / 257, rounded


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(Image.fromarray(SIXTEEN)), id="png"),
        pytest.param(saved(Image.fromarray(SIXTEEN), "TIFF"), id="tiff"),
        pytest.param(saved(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"), id="tiff, big-endian"),
        pytest.param(saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), id="tiff, 32-bit"),
        pytest.param(b"P5 6 1 65535\n" + SIXTEEN.astype(">u2").tobytes(), id="pgm"),
    ],
)
def test_16_bit_grey_is_scaled_not_clipped(data: bytes) -> None:
    assert decode(data, "").tolist() == SCALED


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), grey(0, 128, 255)),  # 127.5 goes to the even neighbour
        (np.array([[-2, 0, 2]], np.float32), grey(0, 128, 255)),
        (np.array([[7, 7]], np.float32), grey(0, 0)),
        (np.array([[0, 0]], np.float32), grey(0, 0)),
        (np.array([[-1, 0, 254]], np.int32), grey(0, 1, 255)),
        (np.array([[100_000, 100_255]], np.int32), grey(0, 255)),
    ],
)
def test_floats_and_wide_integers_are_scaled(values: np.ndarray, expected: list[Any]) -> None:
    assert decode(saved(Image.fromarray(values), "TIFF"), "").tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    assert "not finite" in refusal(saved(Image.fromarray(np.array([[0, value]], np.float32)), "TIFF"))


def palette(transparency: bytes | int) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return saved(image, transparency=transparency)


RED, GREEN, BLUE, WHITE, PINK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [255, 127, 127]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), [[PINK]], id="RGBA"),
        pytest.param(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 0))), [[WHITE]], id="RGBA, transparent"),
        pytest.param(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 255))), [[RED]], id="RGBA, opaque"),
        pytest.param(saved(Image.new("LA", (1, 1), (0, 51))), [[[204] * 3]], id="LA"),
        pytest.param(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "WEBP", lossless=True), [[WHITE]], id="webp"),
        pytest.param(palette(bytes([128, 255, 0])), [[PINK, GREEN, WHITE]], id="palette with alphas"),
        pytest.param(palette(1), [[RED, WHITE, BLUE]], id="palette with a transparent entry"),
        pytest.param(saved(Image.new("RGB", (1, 1), (255, 0, 0)), transparency=(255, 0, 0)), [[WHITE]], id="RGB with a transparent colour"),
        pytest.param(saved(Image.new("L", (1, 1), 9), transparency=9), [[WHITE]], id="grey with a transparent value"),
    ],
)
def test_what_is_transparent_lies_over_white(data: bytes, expected: list[Any]) -> None:
    assert decode(data, "").tolist() == expected


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((255, 0, 0, 0), [0, 255, 255]),
        ((0, 0, 0, 0), WHITE),
        ((0, 0, 0, 255), [0, 0, 0]),
        ((0, 128, 255, 64), [191, 95, 0]),  # (255 - ink) * (255 - black) / 255
    ],
)
def test_cmyk(ink: tuple[int, ...], expected: list[int]) -> None:
    image = Image.new("CMYK", (8, 8), ink)
    assert decode(saved(image, "TIFF"), "")[0, 0].tolist() == expected
    assert np.abs(decode(saved(image, "JPEG", quality=100), "")[4, 4].astype(int) - expected).max() <= 3


def test_grey_one_bit_and_plain_palette() -> None:
    assert decode(saved(Image.fromarray(np.array([[0, 7, 255]], np.uint8))), "").tolist() == grey(0, 7, 255)
    assert decode(saved(Image.fromarray(np.array([[True, False]]))), "").tolist() == grey(255, 0)
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    assert decode(saved(image), "").tolist() == [[RED, GREEN]]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), tuple(colour)) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert decode(data, "").tolist() == [[RED, RED], [RED, RED]], kind


# How the stored picture must be turned, orientation by orientation (Exif 2.32, tag 0x0112), said in numpy.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    stored = RNG.integers(0, 256, (3, 2, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(stored), kind, exif=exif, **options)
    assert np.array_equal(decode(data, ""), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_16_bit_grey_and_jpeg(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.arange(6, dtype=np.uint16).reshape(3, 2) * (257 * 20)
    upright = UPRIGHT[orientation]((stored // 257).astype(np.uint8))
    assert np.array_equal(decode(saved(Image.fromarray(stored), exif=exif), "")[..., 0], upright)
    blocks = np.kron((stored // 257).astype(np.uint8), np.ones((8, 8), np.uint8))
    read = decode(saved(Image.fromarray(blocks), "JPEG", exif=exif, quality=100), "")[4::8, 4::8, 0]
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest takes our own filter away; test_no_warning_leaks has it
def test_a_broken_exif_block_leaves_the_picture_as_stored() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"):
        assert decode(saved(Image.new("RGB", (2, 1), (255, 0, 0)), exif=exif), "").tolist() == [[RED, RED]]


PHOTO = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_each_format_is_read_and_refused_when_truncated(kind: str) -> None:
    if kind not in pictures.FORMATS:
        pytest.skip(f"PIL was built without {kind}")
    data = saved(PHOTO, kind)
    assert probe(data, "") == (64, 64)
    assert decode(data, "").shape == (64, 64, 3)
    # JPEG 2000 is made for reading a part, and its decoder gives what a cut at the half still holds
    text = refusal(data[: len(data) // 20 if kind == "JPEG2000" else len(data) // 2])
    assert "truncated" in text or "damaged" in text or "not a picture" in text


def test_what_is_no_picture_is_refused() -> None:
    for check in (decode, probe):
        assert "empty (0 bytes)" in refusal(b"", check)
        assert "not a picture" in refusal(b"hello, world" * 100, check)
        assert "not a picture" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", check)


def test_a_kind_of_colour_that_cannot_be_converted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF")
    assert decode(data, "").min() >= 254

    def unable(*_: Any) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", unable)  # as where PIL was built without colour management
    assert "colours of the kind LAB" in refusal(data)


@pytest.mark.filterwarnings("ignore:Image size")  # pytest takes our own filter away; test_no_warning_leaks has it
@pytest.mark.parametrize("check", [decode, probe])
@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (10_001, 10_000), (60_000, 60_000)])
def test_a_bomb_is_refused_without_decoding(check: Any, width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("was decoded"))
    data = png(width, height)
    begun = time.perf_counter()
    assert "100 megapixels" in refusal(data, check)
    assert time.perf_counter() - begun < 0.5


@pytest.mark.filterwarnings("ignore:Image size")
def test_the_limit_itself_is_allowed() -> None:
    assert probe(png(10_000, 10_000), "") == (10_000, 10_000)


def test_no_warning_leaks() -> None:
    """Under -W error, in a process of its own: pytest puts its own filters in place."""
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"
    code = f"""
from regraft.datasets.pictures import decode, probe
from regraft.errors import UserError
assert probe({png(10_000, 9_500)!r}, "") == (9_500, 10_000)
decode({saved(Image.new("RGB", (2, 1)), exif=broken)!r}, "")
decode({palette(bytes([128, 255, 0]))!r}, "")
try:
    probe({png(10_000, 15_000)!r}, "")
except UserError as error:
    print("10000 x 15000" in str(error))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_crop_is_resize_of_the_shorter_side_then_the_centre() -> None:
    for height, width in [(90, 60), (60, 90), (61, 97), (20, 20), (10, 33), (10, 200), (200, 10)]:
        picture = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wide, high = (round(length * 32 / min(width, height)) for length in (width, height))
        left, top = (wide - 32) // 2, (high - 32) // 2
        whole = np.array(Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC))
        assert np.array_equal(fit(picture, 32, "crop"), whole[top : top + 32, left : left + 32]), (height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (100, 64)])
def test_a_part_of_the_shorter_side_is_that_middle_enlarged(height: int, width: int) -> None:
    picture = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (height - 32) // 2, (width - 32) // 2
    middle = picture[top : top + 32, left : left + 32]  # half of 64
    assert np.array_equal(fit(picture, 32, "crop", 0.5), middle)
    enlarged = np.array(Image.fromarray(middle).resize((64, 64), Image.Resampling.BICUBIC))
    inside = slice(6, -6)  # at its edge the enlarged middle knows less than the enlarged picture
    assert np.array_equal(fit(picture, 64, "crop", 0.5)[inside, inside], enlarged[inside, inside])
    assert not np.array_equal(fit(picture, 64, "crop"), fit(picture, 64, "crop", 0.5))
    assert np.array_equal(fit(picture, 64, "crop", 1.0), fit(picture, 64, "crop"))
    for how in ("squash", "pad"):
        assert np.array_equal(fit(picture, 48, how, 0.5), fit(picture, 48, how)), "they keep the whole picture"


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for how in ("crop", "squash", "pad"):
        assert np.array_equal(fit(picture, 32, how), picture)


def test_squash_and_pad() -> None:
    picture = np.full((10, 40, 3), 7, np.uint8)
    assert (fit(picture, 20, "squash") == 7).all()
    padded = fit(picture, 20, "pad")
    inside = np.zeros((20, 20), bool)
    inside[7:12] = True  # 40 x 10 becomes 20 x 5, 7 px from the top
    assert (padded[inside] == 7).all()
    assert (padded[~inside] == 255).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 64)[None, :, None].repeat(128, 0).repeat(3, 2)
    assert np.abs(fit(stripes, 16, "squash")[:, 2:-2].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("how", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (1, 1)])
def test_extreme_shapes_need_no_extreme_memory(how: Any, shape: tuple[int, int]) -> None:
    begun = time.perf_counter()
    assert fit(np.zeros((*shape, 3), np.uint8), 224, how).shape == (224, 224, 3)
    assert time.perf_counter() - begun < 2
