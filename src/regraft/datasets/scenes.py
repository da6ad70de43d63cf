"""Made scenes: the embedded set's drawings, cut out and put on a canvas, so that every box is exact; nothing but a recipe is kept.

A drawing is what is not white, with its holes filled, and is cut to its own extent first: it fills its box to the edge. Scenes of a split
hold drawings of that split alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes

from regraft.datasets import clipart
from regraft.datasets.fingerprint import examine
from regraft.datasets.pictures import changed, decode
from regraft.datasets.source import Sample, Source
from regraft.datasets.splits import arrange
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets.detection import Scenes

RECIPE = 1  # grows whenever the same numbers would give other pixels
PAPER = 245  # a pixel with no channel below this is paper
PALEST = 200  # the canvas has one colour, of channels between this and 255
TRIES = 50  # places that are tried for a drawing before the scene does without it
KEPT = 256  # cut-outs that a reader holds (64 kB each)


class Placed(NamedTuple):
    """One drawing on the canvas."""

    file: str
    label: int
    left: int  # px, as are the next three
    top: int
    width: int
    height: int
    flipped: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


class Recipe(NamedTuple):
    """What a scene is made of; later drawings lie over earlier ones."""

    colour: tuple[int, int, int]
    drawings: tuple[Placed, ...]


class Made(Source):
    """Scenes that are drawn when they are read."""

    def __init__(
        self, canvas: int, recipes: dict[str, Recipe], hashes: dict[str, str], classes: Sequence[str], samples: Sequence[Sample]
    ) -> None:
        """`canvas`: px of the square's side; `recipes`: by id; `hashes`: of the drawings' files."""
        super().__init__(classes, samples, kind="boxes")
        self.canvas, self.recipes, self.hashes = canvas, recipes, hashes

    def read(self, sample: Sample) -> np.ndarray:
        """The scene, uint8 [canvas, canvas, 3]. Raises UserError for a drawing that is not what it was when the set was opened."""
        recipe = self.recipes[sample.id]
        scene = Image.new("RGB", (self.canvas, self.canvas), recipe.colour)
        for placed in recipe.drawings:
            drawing = Image.fromarray(cut(placed.file, self.hashes[placed.file]))
            drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.flipped else drawing
            drawing = drawing.resize((placed.width, placed.height), Image.Resampling.BOX)
            scene.paste(drawing, (placed.left, placed.top), drawing)
        return np.array(scene)


def load(spec: Scenes, cache: Path) -> Source:
    """So many scenes for each split. Raises UserError for drawings that differ from labels.csv, or a class that a split has none of."""
    names = spec.classes or clipart.classes()
    rows = [row for row in clipart.rows() if row["label"] in names]
    hashes, _ = examine(clipart.ROOT, [row["file"] for row in rows], cache, "raise")
    if differing := [row["file"] for row in rows if hashes[row["file"]] != row["sha256"]]:
        remedy = "differs from labels.csv; install regraft again"
        raise UserError(Problem(str(clipart.ROOT / file), None, remedy) for file in differing)
    recipes: dict[str, tuple[str, Recipe]] = {}
    for split, count in (("train", spec.train), ("val", spec.val), ("test", spec.test)):
        drawings = [[row["file"] for row in rows if row["split"] == split and row["label"] == name] for name in names]
        for number in range(count):
            recipes[f"scenes/{split}/{number:05d}"] = (split, recipe(spec, drawings, hashes, f"{split} {number}"))
    samples = [
        Sample(name, split, 0, _sha256(spec.canvas, made, hashes), target=boxes(made, spec.canvas, spec.most))
        for name, (split, made) in recipes.items()
    ]
    used = {placed.file for _, made in recipes.values() for placed in made.drawings}
    return Made(
        spec.canvas,
        {name: made for name, (_, made) in recipes.items()},
        {file: hashes[file] for file in used},
        names,
        arrange(spec, names, samples, ("val", "test"), kind="boxes"),
    )


def recipe(spec: Scenes, drawings: Sequence[Sequence[str]], hashes: dict[str, str], name: str) -> Recipe:
    """A function of the spec's numbers, the drawings of each class, and the scene's name: all classes are equally frequent."""
    digest = hashlib.sha256(f"{RECIPE} {spec.scene_seed} {name}".encode()).digest()
    chance = random.Random(int.from_bytes(digest, "big")).random  # the one method whose numbers stay the same in all Pythons

    def whole(least: int, most: int) -> int:
        return least + int(chance() * (most - least + 1))

    colour = (whole(PALEST, 255), whole(PALEST, 255), whole(PALEST, 255))
    placed: list[Placed] = []
    for _ in range(whole(spec.least, spec.most)):
        label = whole(0, len(drawings) - 1)
        file = drawings[label][whole(0, len(drawings[label]) - 1)]
        high, wide = cut(file, hashes[file]).shape[:2]
        longer = spec.canvas * (spec.smallest + chance() * (spec.largest - spec.smallest))
        width, height = (max(1, round(side * longer / max(high, wide))) for side in (wide, high))
        flipped = chance() < 0.5
        for _ in range(TRIES):
            new = Placed(file, label, whole(0, spec.canvas - width), whole(0, spec.canvas - height), width, height, flipped)
            if all(shared(new.box, other.box) <= spec.overlap for other in placed):
                placed.append(new)
                break
    return Recipe(colour, tuple(placed))


def shared(one: Sequence[float], other: Sequence[float]) -> float:
    """The area of two boxes' intersection as part of the smaller one, 0..1: no less than the intersection over the union."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(wide, 0) * max(high, 0) / min(areas)


def boxes(made: Recipe, canvas: int, most: int) -> np.ndarray:
    """float32 [most, 5]: class (-1: none), x0, y0, x1, y1 as parts of the canvas."""
    found = np.zeros((most, 5), np.float32)
    found[:, 0] = -1
    for row, placed in zip(found, made.drawings, strict=False):
        row[:] = (placed.label, *(side / canvas for side in placed.box))
    return found


@lru_cache(KEPT)
def cut(file: str, sha256: str) -> np.ndarray:
    """A drawing without the paper around it: uint8 [h, w, 4], the last channel 255 where it is. Raises UserError where it has changed."""
    data = (clipart.ROOT / file).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise changed(str(clipart.ROOT / file))
    picture = decode(data, file)
    mask = binary_fill_holes((picture < PAPER).any(-1))
    mask = mask if mask.any() else np.ones_like(mask)  # nothing but paper: the whole of it
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.dstack([picture, mask.astype(np.uint8) * 255])[inside].copy()


def _sha256(canvas: int, made: Recipe, hashes: dict[str, str]) -> str:
    """The hash of all that decides a scene's pixels."""
    parts = [(hashes[placed.file], *placed[2:]) for placed in made.drawings]
    return hashlib.sha256(repr((RECIPE, canvas, made.colour, parts)).encode()).hexdigest()
