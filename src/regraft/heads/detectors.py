"""The head that finds boxes: what it takes. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from regraft.errors import Problem, UserError
from regraft.heads.spec import HeadSpec
from regraft.registry import doc

if TYPE_CHECKING:
    from torch import nn

Side = Annotated[float, Field(gt=0)]


class RCNNHead(HeadSpec):
    """Faster R-CNN's head (Ren et al. 2015): region proposals and a box head over one map, or over a pyramid of several."""

    learns: ClassVar[bool] = True
    brings: ClassVar = {"loss": "own"}
    kinds = ("boxes",)

    width: int = doc("channels of the pyramid's maps, a multiple of 8", ge=8, multiple_of=8)
    hidden: int = doc("units of the box head's two hidden layers", ge=1)
    anchors: list[Side] = doc("sides of the anchors at each map, in its cells", min_length=1)
    ratios: list[Side] = doc("heights of the anchors over their widths", min_length=1)
    proposals: int = doc("regions of a picture that the box head looks at, at most", ge=1)
    drawn_anchors: int = doc("anchors of a picture that a loss is made of, at most half of them on objects", ge=2)
    drawn_regions: int = doc("regions of a picture that a loss is made of, at most a quarter of them on objects", ge=4)
    score: float = doc("boxes of a lower score (0..1) are not told", ge=0, lt=1)
    overlap: float = doc(
        "of two boxes of a class that overlap more (intersection over union, 0..1) the less sure one is not told", gt=0, le=1
    )

    def problems(self) -> list[Problem]:
        sides = [(key, given) for key, given in (("anchors", self.anchors), ("ratios", self.ratios)) if len(set(given)) < len(given)]
        return [Problem(key, given, "a number is in the list twice; name each once") for key, given in sides]

    def build_for(self, shape: Sequence[int] | Sequence[tuple[int, ...]], classes: Sequence[str]) -> nn.Module:
        """`shape`: [c, h, w] of the one map that enters, or those of the maps that enter packed, the finest first."""
        from regraft.detecting import Detector

        maps = [shape] if len(shape) == 3 and isinstance(shape[0], int) else shape
        if not all(isinstance(each, Sequence) and len(each) == 3 for each in maps):
            remedy = f"it looks for boxes in maps, and this net gives {list(shape)}; model=rcnn would work"
            raise UserError(Problem("head", self.name, remedy))
        return Detector(cast("Sequence[tuple[int, int, int]]", maps), len(classes), **self.model_dump(exclude={"name"}))
