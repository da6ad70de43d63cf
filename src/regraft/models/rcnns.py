"""The backbone of a region-based net: any entry of the model group that gives feature maps, by its keys. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from regraft.errors import Problem, UserError
from regraft.models.spec import ModelSpec, Published
from regraft.registry import doc, parse

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.chain import Backbone
    from regraft.models.rcnn import Maps


class RCNN(ModelSpec):
    """Faster R-CNN's backbone (Ren et al. 2015): maps of another entry's net, one or several for a pyramid (Lin et al. 2017)."""

    backbone: dict[str, Any] = doc("another entry of the model group, by its keys: {name: resnet, depth: 18}; weights stand beside it")
    strides: list[Literal[4, 8, 16, 32]] = doc(
        "px of the picture for each cell of the maps: one of 4, 8, 16, 32, or several (a pyramid)", min_length=1
    )

    @property
    def inner(self) -> ModelSpec:
        """The entry whose maps these are. Raises UserError where its keys are not those of an entry."""
        from regraft.models import GROUP

        name = self.backbone.get("name")
        if name is None or name == self.name:
            raise UserError(
                Problem("backbone.name", name, "another entry of the model group is needed: efficientnet_lite or resnet would work")
            )
        try:
            spec, values = GROUP.spec(name), GROUP.values(name)
        except UserError as error:
            raise UserError(problem._replace(key="backbone.name") for problem in error.problems) from None
        return cast(ModelSpec, parse(spec, values | self.backbone | {"weights": self.weights}, "backbone"))

    def problems(self) -> list[Problem]:
        if "weights" in self.backbone:
            return [Problem("backbone.weights", self.backbone["weights"], "weights are given beside the backbone: model.weights")]
        twice = [stride for stride in set(self.strides) if self.strides.count(stride) > 1]
        found = [Problem("strides", self.strides, f"{twice[0]} is in the list twice")] if twice else []
        try:
            inner = self.inner
        except UserError as error:
            return [*found, *error.problems]
        own = [problem._replace(key=problem.key if problem.key == "weights" else f"backbone.{problem.key}") for problem in inner.problems()]
        return [*found, *own]

    def deciding(self) -> dict[str, Any]:
        return super().deciding() | {"backbone": self.inner.deciding()}

    def least(self) -> int:
        return max(self.inner.least(), *self.strides)

    def too_small(self, size: int) -> Problem | None:
        coarsest = max(self.strides)
        if size % coarsest:
            below, above = size // coarsest * coarsest, -(-size // coarsest) * coarsest
            near = f"data.size={above}" if not below else f"data.size={below} or {above}"
            return Problem("data.size", size, f"whole cells of {coarsest} px are needed; {near} would work")
        return self.inner.too_small(size)

    def published(self) -> Published | None:
        return self.inner.published()

    def download(self, published: Published) -> Path | None:
        return self.inner.download(published)

    def build(self, size: int) -> Backbone:
        from regraft.models import rcnn

        return rcnn.build(self.inner.build(size), self.inner.name, self.strides, size)

    def fetch(self, backbone: Backbone) -> dict[str, Tensor]:
        return self.inner.fetch(cast("Maps", backbone).inner)

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import rcnn

        maps = cast("Maps", backbone)
        own = any(f".{rcnn.CARRIED}." in key for key in state) or state.keys() == maps.module.state_dict().keys()
        return rcnn.adapt(state if own else self.inner.adapt(state, maps.inner), maps)

    def inherit(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import rcnn

        return rcnn.adapt(state, cast("Maps", backbone))

    def classifier(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor] | None:
        return None  # a classifier of pooled features is none of regions
