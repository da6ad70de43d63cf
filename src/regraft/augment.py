"""Augmentations: each is none, a finite set of views that can be enumerated (and so cached exactly), or random.

A picture meets them in this order, whatever their place in a list: what is random for each picture, the view, the mix with a partner,
whitening. What is random keeps the list's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from regraft.errors import Problem, UserError, nearest
from regraft.registry import Group, Named, doc, parse
from regraft.views import IDENTITY, View

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.transforms import Mix
    from regraft.whitening import Colours

    Transform = Callable[[Tensor, tuple[int | str, ...]], Tensor]


Level = Annotated[int, Field(ge=0, le=255)]  # a grey level


class AugmentationSpec(Named):
    """Common to all augmentations."""

    views: Literal["draw", "expand"] = doc("draw: one view of each picture an epoch; expand: all of them")

    def finite(self) -> list[View] | None:
        """The views, the plain picture first; None: random, and so never enumerated."""
        return [IDENTITY]

    def symmetries(self) -> list[View]:
        """The views that one is drawn from (or that all are shown) before anything random is done; the plain picture first."""
        return self.finite() or [IDENTITY]

    def random(self, x: Tensor, key: tuple[int | str, ...]) -> Tensor:
        """A random augmentation's draw: uint8 [c, h, w] -> the same; `key` is its random stream's."""
        raise NotImplementedError

    @property
    def margin(self) -> float:
        """How much larger than the net's input pictures are read, so that a crop has something to cut."""
        return 1.0

    @property
    def needs_colours(self) -> bool:
        """Whether `transform` needs the colours of the train split."""
        return False

    def transform(self, size: int, colours: Colours | None) -> Transform | None:
        """What is random for each picture: (uint8 [c, m, m] with m = round(size * margin), key) -> uint8 [c, size, size]; None: nothing."""
        return None if self.finite() else self.random

    def mix(self) -> Mix | None:
        """How pictures of a batch are mixed with each other; None: not at all."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether `mix` gives something; told without torch."""
        return type(self).mix is not AugmentationSpec.mix

    def whiten(self) -> Whitening | None:
        """What all splits pass through in place of the net's own normalisation; None: nothing."""
        return None


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


class Random(AugmentationSpec):
    """Common to what is random: it can't be enumerated, and so runs live."""

    def finite(self) -> None:
        return None


class AlexNet(Random):
    """Random crop, mirroring and a shift of the colours (Krizhevsky et al. 2012, section 4.1)."""

    crop: float = doc("side of the window, as a part of the enlarged picture's; 0.875 is 224 out of 256", gt=0, le=1)
    flip: bool = doc("mirror half of the pictures left-right")
    colour: float = doc("standard deviation of the shift along train's principal colours, in their variances; 0: none", ge=0)

    @property
    def margin(self) -> float:
        return 1 / self.crop

    @property
    def needs_colours(self) -> bool:
        return True

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        assert colours is not None, "alexnet needs the colours of the train split"
        return transforms.AlexNet(size, self.flip, self.colour, colours)


class Part(Random):
    """Common to what cuts or fills a random part of a picture."""

    scale: list[float] = doc("least and largest area of the part, 0..1 of the picture", min_length=2, max_length=2)
    ratio: list[float] = doc("least and largest ratio of the part's sides", min_length=2, max_length=2)

    def problems(self) -> list[Problem]:
        remedy = "[least, largest] is needed: the smaller one first, both more than 0"
        found = [Problem("scale", self.scale, f"{remedy} and at most 1")] if not 0 < self.scale[0] <= self.scale[1] <= 1 else []
        return [*found, Problem("ratio", self.ratio, remedy)] if not 0 < self.ratio[0] <= self.ratio[1] else found


class RandomResizedCrop(Part):
    """A part of random area and shape, resized to the net's input (Szegedy et al. 2015, section 6)."""

    @property
    def margin(self) -> float:
        """Up to twice the size, so that a small part has pixels of its own."""
        return min(2.0, self.scale[0] ** -0.5)

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        return transforms.resized_crop(size, self.scale, self.ratio)


class RandomErasing(Part):
    """A random rectangle is erased (Zhong et al. 2020)."""

    p: float = doc("probability that a picture has one, 0..1", ge=0, le=1)
    value: Level | Literal["random"] = doc("grey level of the rectangle, 0..255, or random: noise")

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        return transforms.erasing(self.p, self.scale, self.ratio, self.value)


class PixelDropout(Random):
    """Single pixels are blanked."""

    p: float = doc("probability of each pixel, 0..1", ge=0, le=1)
    value: Level = doc("grey level of a blank pixel, 0..255")

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        return transforms.PixelDropout(self.p, self.value)


class RandAugment(Random):
    """Some operations of fourteen, all of one strength (Cubuk et al. 2020)."""

    ops: int = doc("operations on each picture, one after the other", ge=0)
    magnitude: int = doc("their strength, 0..30", ge=0, le=30)

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        return transforms.randaugment(self.ops, self.magnitude)


class TrivialAugment(Random):
    """One operation of fourteen, of random strength; the wide space (Müller and Hutter 2021)."""

    def transform(self, size: int, colours: Colours | None) -> Transform:
        from regraft import transforms

        return transforms.trivialaugment()


class Mixed(Random):
    """Common to what mixes two pictures and their labels."""

    alpha: float = doc("of Beta(alpha, alpha), which a picture's share is drawn from; 1: any share is as likely", gt=0)

    def transform(self, size: int, colours: Colours | None) -> None:
        return None


class Mixup(Mixed):
    """Weighted means of two pictures and of their labels (Zhang et al. 2018)."""

    def mix(self) -> Mix:
        from regraft import transforms

        return transforms.Mixup(self.alpha)


class CutMix(Mixed):
    """A box of another picture is pasted, and the labels are weighted by area (Yun et al. 2019)."""

    def mix(self) -> Mix:
        from regraft import transforms

        return transforms.CutMix(self.alpha)


class Whitening(AugmentationSpec):
    """Pictures whose values are uncorrelated and of variance 1, by a map fitted on train (Krizhevsky 2009, appendix A)."""

    kind: Literal["zca", "pca"] = doc(
        "zca: turned back, and so as close to the picture as can be; pca: the principal components themselves"
    )
    over: Literal["colours", "pixels"] = doc("colours: red, green and blue of a pixel; pixels: all values of a picture")
    epsilon: float = doc("added to each variance, on values in 0..1; the larger, the less noise is enlarged", gt=0)
    components: int | None = doc("principal directions that are kept over pixels; null: all that train spans", ge=1)

    def problems(self) -> list[Problem]:
        if self.over == "colours" and self.components is not None:
            return [Problem("components", self.components, "over=colours always keeps its three; null works")]
        return []

    def whiten(self) -> Whitening:
        return self


class Several(AugmentationSpec):
    """Several at once: what is random, in the list's order; then the view, the mix with another picture, and whitening."""

    steps: list[Any] = doc("names, or mappings {name: ..., key: value}; what a mapping leaves out is as in the entry's own file")

    def problems(self) -> list[Problem]:
        parts, found = [], []
        for at in range(len(self.steps)):
            try:
                parts.append((at, part := self._part(at)))
                found += [problem._replace(key=f"steps[{at}].{problem.key}") for problem in part.problems()]
            except UserError as error:
                found += [problem._replace(key=problem.key.removeprefix(f"{GROUP.name}.")) for problem in error.problems]
        if not self.steps:
            found.append(Problem("steps", self.steps, "at least one is needed; augmentation=none for nothing"))
        for has, what in ONCE:
            for at, part in [(at, part) for at, part in parts if has(part)][1:]:
                found.append(Problem(f"steps[{at}]", part.name, f"a list holds no more than one that {what}"))
        return found

    def parts(self) -> list[AugmentationSpec]:
        """The steps as specs. Raises UserError with the mistakes of the first that is wrong."""
        return [self._part(at) for at in range(len(self.steps))]

    def _part(self, at: int) -> AugmentationSpec:
        step, key = self.steps[at], f"{GROUP.name}.steps[{at}]"
        if not isinstance(step, Mapping) or not isinstance(name := step.get("name"), str):
            raise UserError(Problem(key, step, "a name is needed, or a mapping {name: random_erasing, p: 0.5}"))
        if name == self.name:
            raise UserError(Problem(key, name, "a list in a list; write its steps into this one"))
        if name not in GROUP.names():
            known = [entry for entry in GROUP.names() if entry != self.name]
            raise UserError(Problem(key, name, f"no such augmentation; {nearest(name, known) or 'there are ' + ', '.join(known)}"))
        if "views" in step:
            raise UserError(Problem(f"{key}.views", step["views"], "augmentation.views is for the whole list"))
        part = parse(GROUP.spec(name), {**step, "views": self.views}, key)
        assert isinstance(part, AugmentationSpec)
        return part

    def finite(self) -> list[View] | None:
        return None if any(part.finite() is None for part in self.parts()) else self.symmetries()

    def symmetries(self) -> list[View]:
        """Every view that the finite steps can lead to, each once."""
        views = [IDENTITY]
        for part in self.parts():
            views = [view.then(after) for after in part.symmetries() for view in views]
        return list(dict.fromkeys(views))

    @property
    def margin(self) -> float:
        return max(part.margin for part in self.parts())

    @property
    def needs_colours(self) -> bool:
        return any(part.needs_colours for part in self.parts())

    def transform(self, size: int, colours: Colours | None) -> Transform | None:
        from regraft import transforms

        made = ((at, part.transform(size, colours)) for at, part in enumerate(self.parts()))
        steps = tuple((at, transform) for at, transform in made if transform)
        return transforms.InTurn(steps) if steps else None

    @property
    def mixes(self) -> bool:
        return any(part.mixes for part in self.parts())

    def mix(self) -> Mix | None:
        return next((mix for part in self.parts() if (mix := part.mix())), None)

    def whiten(self) -> Whitening | None:
        return next((found for part in self.parts() if (found := part.whiten())), None)


# What a list may hold once: a picture has one partner, one normalisation, and one size that it is read at.
ONCE: tuple[tuple[Callable[[AugmentationSpec], object], str], ...] = (
    (lambda part: part.mixes, "mixes pictures"),
    (lambda part: part.whiten(), "whitens"),
    (lambda part: part.margin > 1, "crops"),
)


def filled(steps: Any) -> Any:
    """The steps of a list as mappings with all their keys: what is left out comes from the entry's own YAML file, or from the defaults
    of a spec of an outside package. What is no list, no step or no known entry is given back as it is, for the spec to tell."""
    return [_filled(step) for step in steps] if isinstance(steps, Sequence) and not isinstance(steps, str) else steps


def _filled(step: Any) -> Any:
    given = {"name": step} if isinstance(step, str) else step
    name = given.get("name") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or name not in GROUP.names():
        return given
    known = {key: value for key, value in GROUP.values(name).items() if key != "views"}
    return {"name": name, **known, **given}


GROUP = Group(
    "augmentation",
    {
        "none": Plain,
        "flips": Flips,
        "rotations": Rotations,
        "d4": D4,
        "random_resized_crop": RandomResizedCrop,
        "alexnet": AlexNet,
        "random_erasing": RandomErasing,
        "pixel_dropout": PixelDropout,
        "randaugment": RandAugment,
        "trivialaugment": TrivialAugment,
        "mixup": Mixup,
        "cutmix": CutMix,
        "whitening": Whitening,
        "several": Several,
    },
    "regraft.augmentations",
    about="what training sees of each picture",
)
