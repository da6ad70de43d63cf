"""The eight symmetries of the square, which are what a finite augmentation enumerates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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

    def then(self, after: View) -> View:
        """The view that does the same as this one and another after it."""
        turns = after.turns + (-self.turns if after.mirrored else self.turns)  # mirroring reverses the sense of a turn
        return View(turns % 4, self.mirrored != after.mirrored)

    def __str__(self) -> str:
        return f"{'mirrored ' if self.mirrored else ''}{90 * self.turns} degrees"


IDENTITY = View()
