"""Lines of text made for reading: handwritten digits side by side, and words in many fonts; each line is a function of the seed.

A line is an array float32 [h, w] in 0..1, 1 where there is ink; its text int64 [1, L], places in the classes, 0 behind its end. Class 0
is no character (CTC's blank, and the padding), class 1 the space.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regraft.datasets.source import Sample, Source
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets.strung import DigitStrings, Lines, Words

SIDE = 8  # px of a digit
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD = re.compile(r"[a-z]{3,10}")
HEIGHT, WIDTH = 32, 256  # px of a line of words
OWN = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")  # matplotlib's, by their beginnings
MOST = 400  # fonts of a folder
Line = Callable[[Random, str], tuple[np.ndarray, str]]  # what is drawn, and the split -> uint8 [h, w] and its text


class Drawn(Source):
    """Lines held as uint8 [n, h, w], which are read as float32 [h, w] in 0..1."""

    input = "array"

    def __init__(self, lines: dict[str, np.ndarray], texts: dict[str, str], split: dict[str, str], characters: str, longest: int) -> None:
        """All by id; `characters`: those of the classes from 1 on; `longest`: L"""
        place = {character: number for number, character in enumerate(characters, 1)}

        def target(text: str) -> np.ndarray:
            return np.array([[*(place[each] for each in text), *[0] * (longest - len(text))]], np.int64)

        samples = (Sample(name, split[name], 0, _content(line), target=target(texts[name])) for name, line in lines.items())
        super().__init__(["", *characters], samples, kind="text")
        self.pixels = np.stack([lines[sample.id] for sample in self.samples])
        self.shape = self.pixels.shape[1:]

    def read(self, sample: Sample) -> np.ndarray:
        """float32 [h, w]"""
        line: np.ndarray = self.pixels[self.samples.find(sample.id)] / np.float32(255)
        return line


def load_digits(spec: DigitStrings) -> Drawn:
    """Strings of 3 to 8 (as asked) digits, each up to 2 px above or below the middle and 0 to 3 px from the one before it."""
    from regraft.datasets import GROUP, Digits, digits

    source = digits.load(Digits.model_validate({**GROUP.values("digits"), "size": SIDE, "val": 0.15, "test": 0.2}))
    known: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for sample in source.samples:
        known[sample.split, sample.label].append(source.read(sample)[:, :, 0])
    width = spec.longest * (SIDE + 3) + 3
    width += -width % 4

    def line(draw: Random, split: str) -> tuple[np.ndarray, str]:
        canvas = np.zeros((2 * SIDE, width), np.uint8)
        text, at = "", draw.randint(0, 3)
        for _ in range(draw.randint(spec.shortest, spec.longest)):
            digit, top = draw.randrange(10), SIDE // 2 + draw.randint(-2, 2)
            canvas[top : top + SIDE, at : at + SIDE] = draw.choice(known[split, digit])
            text, at = text + str(digit), at + SIDE + draw.randint(0, 3)
        return canvas, text

    return _made(spec, line, " 0123456789", spec.longest)


def load_words(spec: Words) -> Drawn:
    """Lines of words at 16 to 24 px, smaller where they would not fit. Raises UserError for a folder without a font of latin letters."""
    words, fonts = vocabulary(spec.line_seed), _fonts(spec)

    def line(draw: Random, split: str) -> tuple[np.ndarray, str]:
        text = " ".join(draw.choice(words[split]) for _ in range(draw.randint(1, spec.most)))
        place, size = draw.choice(fonts[split]), draw.randint(16, 24)
        box = _extent(place, size, text)
        while size > 6 and (box[2] - box[0] > WIDTH or box[3] - box[1] > HEIGHT):
            size -= 1
            box = _extent(place, size, text)
        canvas = Image.new("L", (WIDTH, HEIGHT))
        left, top = (draw.randint(0, max(0, room)) for room in (min(16, WIDTH - box[2] + box[0]), HEIGHT - box[3] + box[1]))
        ImageDraw.Draw(canvas).text((left - box[0], top - box[1]), text, 255, ImageFont.truetype(place, size))
        return np.asarray(canvas), text

    return _made(spec, line, f" {LETTERS}", spec.most * 11 - 1)


def vocabulary(seed: int) -> dict[str, list[str]]:
    """Split -> its words, of 3 to 10 letters: a fifth of all is test's, three in twenty are val's."""
    from regraft.datasets import clipart

    found = {word for row in clipart.rows() for text in (row["title"], row["tags"]) for word in re.findall(r"[a-z]+", text.lower())}
    ordered = _shuffled((word for word in found if WORD.fullmatch(word)), f"{seed} words")
    test, val = len(ordered) // 5, len(ordered) * 7 // 20
    return {"test": sorted(ordered[:test]), "val": sorted(ordered[test:val]), "train": sorted(ordered[val:])}


def _made(spec: Lines, line: Line, characters: str, longest: int) -> Drawn:
    lines, texts, splits = dict[str, np.ndarray](), dict[str, str](), dict[str, str]()
    for split in ("train", "val", "test"):
        for number in range(getattr(spec, split)):
            name = f"{spec.name}/{split}/{number:06d}"
            lines[name], texts[name] = line(Random(f"{spec.line_seed} {name}"), split)
            splits[name] = split
    return Drawn(lines, texts, splits, characters, longest)


def _fonts(spec: Words) -> dict[str, list[str]]:
    """Split -> the fonts' files: a quarter of the families (a font in bold, slanted, ...) is test's alone; where there is but one, it is
    everybody's."""
    if spec.fonts is None:
        import matplotlib

        found = [path for path in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf") if path.stem.startswith(OWN)]
    else:
        found = [path for path in Path(spec.fonts).expanduser().rglob("*") if path.suffix.lower() in (".ttf", ".otf")]
    families: dict[str, list[str]] = defaultdict(list)
    for path in sorted(found)[:MOST]:
        if _writes(path):
            families[str(ImageFont.truetype(str(path), 24).getname()[0])].append(str(path))
    if not families:
        raise UserError(
            Problem("dataset.fonts", spec.fonts, "holds no .ttf or .otf font that has the letters a to z; another folder would")
        )
    ordered = _shuffled(families, f"{spec.line_seed} fonts")
    few = max(1, len(ordered) // 4)
    test, others = (sorted(path for name in names for path in families[name]) for names in (ordered[:few], ordered[few:] or ordered))
    return {"test": test, "val": others, "train": others}


def _writes(path: Path) -> bool:
    """Whether a font can be read, and has a picture of its own for each letter: what it lacks looks all the same."""
    try:
        font = ImageFont.truetype(str(path), 24)
        shapes = {(mask.size, bytes(mask)) for mask in (font.getmask(letter) for letter in LETTERS)}
    except (OSError, ValueError):
        return False
    return len(shapes) == len(LETTERS) and ((0, 0), b"") not in shapes


def _extent(place: str, size: int, text: str) -> tuple[int, int, int, int]:
    """Where its ink begins and ends, px: left, top, right, bottom"""
    left, top, right, bottom = ImageFont.truetype(place, size).getbbox(text)
    return int(left), int(top), int(right), int(bottom)


def _shuffled(texts: Iterable[str], seed: str) -> Sequence[str]:
    """In an order that hangs on each text and the seed alone."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed} {Path(text).name}".encode()).digest())


def _content(line: np.ndarray) -> str:
    return hashlib.sha256(f"{line.shape}\n".encode() + line.tobytes()).hexdigest()
