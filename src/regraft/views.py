"""What can be seen of a picture more than once: the eight symmetries of the square, and numbered draws of what is random."""

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


class Drawn(NamedTuple):
    """One of a fixed number of draws of a random augmentation: the same for a picture in every epoch, run and seed."""

    number: int

    def __str__(self) -> str:
        return f"draw {self.number}"


Seen = View | Drawn
IDENTITY = View()
