"""Heads: what is grafted on the backbone's features, [b, features] -> [b, classes]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from regraft import imagenet
from regraft.errors import Problem, UserError, nearest
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import nn


class HeadSpec(Named):
    """Common to all heads."""

    pretrained: ClassVar[bool] = (
        False  # whether it wants the classifier that the net's weights came with: what `build` gives has `take(weight, bias)`
    )

    dropout: float = doc("part of the head's inputs dropped while training, 0..1", ge=0, lt=1)

    def unfit(self, classes: Sequence[str]) -> list[Problem]:
        """What keeps it from telling a dataset's classes apart, found without torch; keys are relative to the spec."""
        return []

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """[b, features] -> [b, classes], in the order of their names; draws from torch's global stream, which the caller seeds."""
        raise NotImplementedError


class Linear(HeadSpec):
    """One linear layer: the linear probe."""

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        return nn.Sequential(Dropout(self.dropout), nn.Linear(features, len(classes)))


class MLPHead(HeadSpec):
    """One hidden layer with ReLU, dropout before each linear layer."""

    width: int = doc("units of the hidden layer", ge=1)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        hidden = [Dropout(self.dropout), nn.Linear(features, self.width), nn.ReLU()]
        return nn.Sequential(*hidden, Dropout(self.dropout), nn.Linear(self.width, len(classes)))


class CosineHead(HeadSpec):
    """Cosine similarity to a vector for each class, times a scale (Gidaris and Komodakis 2018, section 3.1)."""

    scale: float = doc("what the cosines (-1..1) are multiplied by, more than 0; where it starts, if it is learned", gt=0)
    learn_scale: bool = doc("true or false: whether the scale trains with the head")

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.classifiers import Cosine
        from regraft.streams import Dropout

        return nn.Sequential(Dropout(self.dropout), Cosine(features, len(classes), self.scale, self.learn_scale))


class Narrow(HeadSpec):
    """The net's own ImageNet classifier, its 1,000 classes folded into few: nothing in it trains."""

    pretrained: ClassVar[bool] = True

    fold: dict[str, list[int | str]] | None = doc(
        "class of the dataset -> ImageNet's classes: indices (281), ranges (151-268), names or wnids; null: all 1,000 as they are"
    )

    prior: Literal["equal", "trained"] = doc(
        "how likely each class is before a picture is seen: equal, or trained: by how many of ImageNet's it is made of"
    )

    def problems(self) -> list[Problem]:
        return self._folds()[1]

    def unfit(self, classes: Sequence[str]) -> list[Problem]:
        if self.fold is None:
            remedy = (
                f"the dataset has {len(classes)} classes, not ImageNet's 1,000; fold them: 'head.fold={{{classes[0]}: [281-285], ...}}'"
            )
            return [] if len(classes) == imagenet.CLASSES else [Problem("fold", "null", remedy)]
        strange = [name for name in self.fold if name not in classes]
        missing = [name for name in classes if name not in self.fold]
        there = f"the dataset has {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        return [
            *(Problem(f"fold.{name}", None, f"no class of the dataset; {nearest(name, missing) or there}") for name in strange),
            *(Problem(f"fold.{name}", None, "the dataset has this class: say which of ImageNet's it is made of") for name in missing[:5]),
        ]

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """Raises UserError where the fold's names are not those of the classes."""
        from regraft.classifiers import Folded

        folds, problems = self._folds()
        if problems := [*problems, *self.unfit(classes)]:
            raise UserError(problem._replace(key=f"head.{problem.key}") for problem in problems)
        members = [[i] for i in range(imagenet.CLASSES)] if self.fold is None else [folds[name] for name in classes]
        return Folded(features, imagenet.CLASSES, members, self.dropout, self.prior == "equal")

    def _folds(self) -> tuple[dict[str, list[int]], list[Problem]]:
        """The indices of each fold, and what is wrong with them."""
        folds: dict[str, list[int]] = {}
        problems = []
        for name, words in (self.fold or {}).items():
            folds[name] = []
            problems += [] if words else [Problem(f"fold.{name}", words, "at least one class of ImageNet is needed")]
            for word in words:
                try:
                    folds[name] += imagenet.indices(word)
                except ValueError as error:
                    problems.append(Problem(f"fold.{name}", word, str(error)))
        if self.fold is not None and not self.fold:
            problems.append(Problem("fold", {}, "at least two classes are needed, or null for all 1,000"))
        counts = Counter(index for indices in folds.values() for index in indices)
        for index in [index for index, count in counts.items() if count > 1][:3]:
            owners = [name for name, indices in folds.items() if index in indices]
            where = " and ".join(owners) if len(owners) > 1 else f"{owners[0]}, twice"
            problems.append(Problem("fold", index, f"{imagenet.names()[index]} ({index}) is in {where}; a class goes into one fold, once"))
        return folds, problems


GROUP = Group(
    "head",
    {"linear": Linear, "mlp": MLPHead, "cosine": CosineHead, "narrow": Narrow},
    "regraft.heads",
    about="what is grafted on the backbone",
)
