"""Augmentations: each is none, a finite set of views that can be enumerated (and so cached exactly), or random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import Tensor


class View(NamedTuple):
    """One of the eight symmetries of the square: mirror left-right first (or not), then turn counter-clockwise by 90 degrees."""

    turns: int = 0
    mirrored: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[..., h, w] -> [..., h, w] of a square picture, contiguous"""
        x = x.flip(-1) if self.mirrored else x
        return x.rot90(self.turns, (-2, -1)).contiguous() if self.turns else x.contiguous()

    def __str__(self) -> str:
        return f"{'mirrored ' if self.mirrored else ''}{90 * self.turns} degrees"


IDENTITY = View()


class AugmentationSpec(Named):
    """Common to all augmentations."""

    views: Literal["draw", "expand"] = doc("draw: one view of each picture an epoch; expand: all of them")

    def finite(self) -> list[View] | None:
        """The views, the plain picture first; None: random, and so never enumerated."""
        return [IDENTITY]

    def random(self, x: Tensor, key: tuple[int | str, ...]) -> Tensor:
        """A random augmentation's draw: uint8 [c, h, w] -> the same; `key` is its random stream's."""
        raise NotImplementedError


class Plain(AugmentationSpec):
    """No augmentation: the picture as it is."""


class Flips(AugmentationSpec):
    """Mirrored left-right, top-bottom, or both."""

    horizontal: bool = doc("also the picture mirrored left-right")
    vertical: bool = doc("also the picture mirrored top-bottom")

    def finite(self) -> list[View]:
        views = [IDENTITY]
        if self.horizontal:
            views.append(View(0, True))
        if self.vertical:  # top-bottom is left-right and half a turn
            views += [View(2, not view.mirrored) for view in views]
        return views


class Rotations(AugmentationSpec):
    """The four rotations by 90 degrees."""

    def finite(self) -> list[View]:
        return [View(turns) for turns in range(4)]


class D4(AugmentationSpec):
    """The eight symmetries of the square: four rotations, each mirrored or not."""

    def finite(self) -> list[View]:
        return [View(turns, mirrored) for mirrored in (False, True) for turns in range(4)]


GROUP = Group(
    "augmentation",
    {"none": Plain, "flips": Flips, "rotations": Rotations, "d4": D4},
    "regraft.augmentations",
    about="what training sees of each picture",
)
