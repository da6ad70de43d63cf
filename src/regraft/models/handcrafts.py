"""Hand-crafted features' spec: which are computed and with which numbers; what computes them is `handcrafted.py`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from regraft.errors import Problem, UserError
from regraft.models.spec import ModelSpec
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.chain import Backbone

Feature = Literal["hog", "colour", "lbp"]


class Handcrafted(ModelSpec):
    """Features without weights: gradients (HOG, Dalal and Triggs 2005), colours, local binary patterns (Ojala et al. 2002)."""

    packages: ClassVar = ("scikit-image",)

    features: list[Feature] = doc("which are computed, one after another: hog, colour, lbp", min_length=1)
    orientations: int = doc("hog: directions of a gradient, in 180 degrees", ge=1)
    cell: int = doc("hog: px, side of a cell, which has one histogram of directions", ge=2)
    block: int = doc("hog: cells along a block's side; histograms are normalised within each block", ge=1)
    space: Literal["hsv", "rgb"] = doc("colour: hsv or rgb, whose three channels are binned together")
    bins: list[Annotated[int, Field(ge=1)]] = doc("colour: bins of each of the three channels", min_length=3, max_length=3)
    points: int = doc("lbp: neighbours that each pixel is compared with", ge=4, le=24)
    radius: float = doc("lbp: px from the pixel to these", gt=0)
    grid: int = doc("colour and lbp: the picture is cut into grid x grid parts, each with a histogram of its own", ge=1)

    def least(self) -> int:
        """One block of cells, and a pixel in each part of the grid; hog asks for 3 px at least."""
        block = max(self.cell * self.block, 3) if "hog" in self.features else 1
        return max(block, self.grid if {"colour", "lbp"} & set(self.features) else 1)

    def problems(self) -> list[Problem]:
        twice = [name for name in dict.fromkeys(self.features) if self.features.count(name) > 1]
        found = [Problem("features", self.features, f"{twice[0]} is in the list twice")] if twice else []
        if self.weights != "none":
            found.append(Problem("weights", self.weights, "these features have no weights; none is all there is"))
        return [*found, *([] if find_spec("skimage") else [Problem("name", self.name, MISSING)])]

    def build(self, size: int) -> Backbone:
        """Raises UserError where scikit-image is not installed."""
        if find_spec("skimage") is None:
            raise UserError(Problem("model.name", self.name, MISSING))
        from regraft.models import handcrafted

        return handcrafted.build(self, size)


MISSING = "scikit-image computes these features, and it is not installed; pip install 'regraft[handcrafted]'"
