"""Random augmentations of tensors: every draw is a function of its key, whatever torch's own stream, the devices and the order.

A transform takes (picture, key): uint8 [c, h, w] -> uint8 [c, h, w], or [c, size, size] where it crops. A `Mix` works on whole batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2

from regraft.streams import generator

if TYPE_CHECKING:
    from regraft.whitening import Colours

Key = tuple[int | str, ...]
Transform = Callable[[Tensor, Key], Tensor]


# One picture; classes and not closures, since loader workers may be handed a pickled copy


@dataclass(frozen=True)
class Library:
    """One of torchvision's transforms, which draw from torch's global stream, on the stream of the key."""

    transform: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        with _global(key):
            return self.transform(x)


def resized_crop(size: int, scale: Sequence[float], ratio: Sequence[float]) -> Library:
    """A part of random area and shape, resized to size x size (Szegedy et al. 2015, section 6)."""
    return Library(v2.RandomResizedCrop(size, (scale[0], scale[1]), (ratio[0], ratio[1])))


def randaugment(ops: int, magnitude: int) -> Library:
    """RandAugment (Cubuk et al. 2020); magnitude 0..30."""
    return Library(v2.RandAugment(ops, magnitude))


def trivialaugment() -> Library:
    """TrivialAugment, the wide space (Müller and Hutter 2021)."""
    return Library(v2.TrivialAugmentWide())


@dataclass(frozen=True)
class AlexNet:
    """Krizhevsky, Sutskever and Hinton (2012), section 4.1: a random window, mirrored or not, its colour shifted along train's components.

    The shift is sum_i a_i v_i p_i at every pixel, with p_i and v_i the principal components of RGB and their variances, in units
    of 0..1, and a_i ~ N(0, colour), drawn once for each picture.
    """

    size: int  # px: side of the window
    flip: bool
    colour: float
    colours: Colours

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        draws = generator(*key)
        top, left = (int(torch.randint(side - self.size + 1, (), generator=draws)) for side in x.shape[-2:])
        mirrored = int(torch.randint(2, (), generator=draws))
        a = torch.randn(3, dtype=torch.float64, generator=draws) * self.colour
        shift = 255 * (a * self.colours.eigenvalues) @ self.colours.eigenvectors  # [3]
        x = x[:, top : top + self.size, left : left + self.size]
        x = x.flip(-1) if self.flip and mirrored else x
        return (x + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Erasing:
    """Random erasing (Zhong et al. 2020): a rectangle, where one is drawn, becomes one grey level (0..255) or noise."""

    rectangle: v2.RandomErasing  # erases to 1: torchvision's own noise is meant for normalised floats
    value: int | Literal["random"]

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        with _global(key):
            inside = self.rectangle(torch.zeros_like(x[:1])) > 0  # [1, h, w]
        if self.value == "random":
            return torch.where(inside, torch.randint(256, x.shape, generator=generator(*key, "noise")).to(x.dtype), x)
        return x.masked_fill(inside, self.value)


def erasing(p: float, scale: Sequence[float], ratio: Sequence[float], value: int | Literal["random"]) -> Erasing:
    """A rectangle with probability p, of this range of areas (0..1 of the picture) and of height / width."""
    return Erasing(v2.RandomErasing(p, (scale[0], scale[1]), (ratio[0], ratio[1]), value=1), value)


@dataclass(frozen=True)
class PixelDropout:
    """Each pixel, all of its channels at once, becomes one grey level (0..255) with probability p."""

    p: float
    value: int

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        return x.masked_fill(torch.rand(x.shape[1:], generator=generator(*key)) < self.p, self.value)


@dataclass(frozen=True)
class InTurn:
    """One after the other; each has a stream of its own, named by its position in the user's list."""

    steps: tuple[tuple[int, Transform], ...]

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        for position, step in self.steps:
            x = step(x, (*key, position))
        return x


@contextmanager
def _global(key: Key) -> Iterator[None]:
    """Torch's global CPU stream, started from the key and put back. GPUs' streams are left alone: a forked reader can't touch them."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(generator(*key).initial_seed())
    try:
        yield
    finally:
        torch.set_rng_state(before)


# Two pictures


class Plan(NamedTuple):
    """How rows of a batch are mixed with their partners, in parts of a picture, so that it holds for any size."""

    lam: Tensor  # [rows] float64: the share that is the picture's own
    middle: Tensor  # [rows, 2] float64, 0..1: where a box lies, down and across


class Mix(Protocol):
    """Mixes each picture of a global batch with a partner from it."""

    def draw(self, key: Key, rows: int) -> tuple[Tensor, Plan]:
        """For the whole global batch, a function of the key: each row's partner ([rows] int64, a permutation) and the plan."""
        ...

    def rows(self, plan: Plan, rows: Tensor) -> Plan:
        """The plan of these rows alone."""
        ...

    def apply(self, x: Tensor, partner: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """[b, c, h, w] float and its partners -> the same, mixed, and the weight of each picture's own label, [b] float32."""
        ...


@dataclass(frozen=True)
class _Drawn:
    """What both draw: partners, lam ~ Beta(alpha, alpha) and a place, for each picture of its own."""

    alpha: float

    def draw(self, key: Key, rows: int) -> tuple[Tensor, Plan]:
        concentration = torch.full((rows,), self.alpha, dtype=torch.float64)  # in float32 a small alpha gives 0 / 0
        with _global((*key, "lam")):
            lam = torch.distributions.Beta(concentration, concentration).sample()
        middle = torch.rand(rows, 2, dtype=torch.float64, generator=generator(*key, "box"))
        return torch.randperm(rows, generator=generator(*key, "partner")), Plan(lam, middle)

    def rows(self, plan: Plan, rows: Tensor) -> Plan:
        return Plan(plan.lam[rows], plan.middle[rows])


class Mixup(_Drawn):
    """mixup (Zhang et al. 2018): lam x + (1 - lam) partner. The paper draws one lam for a batch; here each picture has its own."""

    def apply(self, x: Tensor, partner: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        own = plan.lam.to(x.device, torch.float32)
        lam = own[:, None, None, None].to(x.dtype)
        return lam * x + (1 - lam) * partner, own


class CutMix(_Drawn):
    """CutMix (Yun et al. 2019, appendix A): a box of the partner is pasted, its sides sqrt(1 - lam) of the picture's.

    Its middle is uniform and what lies outside the picture is cut off; the label's weight is what is left of the picture's area. The
    paper draws one box for a batch; here each picture has its own.
    """

    def apply(self, x: Tensor, partner: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        sides = torch.tensor(x.shape[-2:])  # px: h, w
        half = (0.5 * (1 - plan.lam).sqrt()[:, None] * sides).long()  # [b, 2]: down, across
        middle = (plan.middle * sides).long()
        first, last = (middle - half).clamp(min=0), torch.minimum(middle + half, sides)
        pasted = (last - first).prod(1)
        (top, left), (bottom, right) = (ends.to(x.device)[:, :, None].unbind(1) for ends in (first, last))  # [b, 1] each
        down, across = (torch.arange(side, device=x.device) for side in x.shape[-2:])
        inside = ((down >= top) & (down < bottom))[:, :, None] & ((across >= left) & (across < right))[:, None]  # [b, h, w]
        own = (1 - pasted / sides.prod()).to(x.device, torch.float32)
        return torch.where(inside[:, None], partner, x), own
