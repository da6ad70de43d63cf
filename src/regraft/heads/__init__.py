"""Heads: what is grafted on the backbone's features, [b, features] -> [b, classes]; some train, some are solved without epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from regraft import imagenet
from regraft.errors import Problem, UserError, nearest
from regraft.heads.captioners import Captions, Tags
from regraft.heads.ctc import Ctc
from regraft.heads.detectors import RCNNHead
from regraft.heads.frames import Frames
from regraft.heads.spec import HeadSpec, Keeping, Trained
from regraft.registry import Group, doc

if TYPE_CHECKING:
    from torch import nn

Penalty = Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] | Literal["auto"]
Metric = Literal["cosine", "euclidean"]
CALIBRATE = "true or false: multiply the scores by one number, found on val, so that their softmax or sigmoid gives probabilities"


class Linear(Keeping):
    """One linear layer: the linear probe."""

    stacks = True

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        return nn.Sequential(Dropout(self.dropout), nn.Linear(features, len(classes)))


class MLPHead(Keeping):
    """One hidden layer with ReLU, dropout before each linear layer."""

    stacks = True

    width: int = doc("units of the hidden layer", ge=1)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        hidden = [Dropout(self.dropout), nn.Linear(features, self.width), nn.ReLU()]
        return nn.Sequential(*hidden, Dropout(self.dropout), nn.Linear(self.width, len(classes)))


class CosineHead(Keeping):
    """Cosine similarity to a vector for each class, times a scale (Gidaris and Komodakis 2018, section 3.1)."""

    stacks = True

    scale: float = doc("what the cosines (-1..1) are multiplied by, more than 0; where it starts, if it is learned", gt=0)
    learn_scale: bool = doc("true or false: whether the scale trains with the head")

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from torch import nn

        from regraft.classifiers import Cosine
        from regraft.streams import Dropout

        return nn.Sequential(Dropout(self.dropout), Cosine(features, len(classes), self.scale, self.learn_scale))


class Narrow(Trained):
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


class Solved(HeadSpec):
    """Common to the heads that need no epochs: `fitting.fit` gives the module that `build` gives unfitted."""

    fits: ClassVar[bool] = True

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """A linear layer of zeros, which a finished run's tensors fill."""
        from regraft.classifiers import solved

        return solved(features, len(classes))


class Crossed(Solved):
    """Common to those whose choice may be made on folds of train."""

    CHOSEN: ClassVar[str] = "penalty"  # the key that may hold several

    folds: int | None = doc("k of the k folds of train on which a list or auto is decided, by the mean over them; null: on val", ge=2)

    def several(self) -> bool:
        """Whether there is something to choose."""
        given = getattr(self, self.CHOSEN)
        return isinstance(given, str) or (isinstance(given, list) and len(given) > 1)

    def problems(self) -> list[Problem]:
        return _choices(self.CHOSEN, getattr(self, self.CHOSEN))


class Ridge(Solved):
    """Least squares on one-hot targets with a penalty on the weights, in closed form (Hoerl and Kennard 1970)."""

    penalty: Penalty = doc("added to the diagonal of X'X (scikit-learn's alpha), more than 0; a list or auto: the one that is best on val")
    calibrate: bool = doc(CALIBRATE)

    def problems(self) -> list[Problem]:
        return _choices("penalty", self.penalty)


class Logistic(Crossed):
    """Cross-entropy with a penalty on the squared weights, minimised by L-BFGS; many labels: one sigmoid for each."""

    kinds = ("class", "tags")

    penalty: Penalty = doc(
        "half of it times the squared weights is added to the summed losses (1 / C of scikit-learn, 2 / C for two classes), more than 0; "
        "a list or auto: the best on val, or on folds"
    )
    standardize: bool = doc("true or false: the penalty is on the weights of features of deviation 1, not of the features as they are")
    max_iter: int = doc("most iterations of L-BFGS for each penalty", ge=1)
    tolerance: float = doc("it has converged when no slope of the mean loss is steeper than this", gt=0)


class SVM(Crossed):
    """Linear support vector machines on standardised features, one class against the rest (Cortes and Vapnik 1995)."""

    kinds = ("class", "tags")

    penalty: Penalty = doc(
        "half of it times the squared weights is added to the summed squared hinge losses (1 / C of LinearSVC), more than 0; "
        "a list or auto: the best on val, or on folds"
    )
    calibrate: bool = doc(CALIBRATE)


class Forest(Crossed):
    """Trees on pictures drawn with replacement, each split the best among the square root of the features' number (Breiman 2001)."""

    CHOSEN = "depth"

    trees: int = doc("how many trees vote", ge=1)
    depth: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] | Literal["auto"] | None = doc(
        "splits from a tree's root to a leaf at most; null: no bound; a list or auto: the best on val, or on folds"
    )
    leaf: int = doc("pictures in each leaf at least", ge=1)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """A forest without trees, which a finished run's tensors fill."""
        from regraft.trees import Trees

        return Trees(features, len(classes))


class KNN(Solved):
    """The k train pictures with the nearest features vote (Wu et al. 2018, section 3.4)."""

    k: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] | Literal["auto"] = doc(
        "how many neighbours vote, at most all pictures; a list or auto: the number that is best on val"
    )
    metric: Metric = doc("what is near: cosine (the angle between features) or euclidean (their distance)")
    temperature: float | None = doc(
        "a vote weighs exp(cosine / temperature), or exp(-squared distance / (2 temperature)); null: all votes weigh the same", gt=0
    )

    def problems(self) -> list[Problem]:
        return _choices("k", self.k)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """A bank without pictures, which a finished run's tensors fill."""
        from regraft.classifiers import Neighbours

        return Neighbours(features, len(classes), self.metric, self.temperature)


class NearestMean(Solved):
    """The class whose train pictures' mean is nearest (Mensink et al. 2013, section 3.2); linear in the features, or in their direction."""

    kinds = ("class",)

    metric: Metric = doc("what is near: cosine (the angle between features) or euclidean (their distance)")
    calibrate: bool = doc(CALIBRATE)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from regraft.classifiers import solved

        return solved(features, len(classes), self.metric == "cosine")


class Majority(Solved):
    """The most frequent class of train, whatever the picture: what every net must beat."""

    kinds = ("class",)


def _choices(key: str, given: Any) -> list[Problem]:
    """What is wrong with a list from which one is chosen on val."""
    if not isinstance(given, list):
        return []
    twice = [each for each, count in Counter(given).items() if count > 1]
    return [
        *([] if given else [Problem(key, given, "at least one number is needed, or auto")]),
        *([Problem(key, given, f"{twice[0]} is in the list twice")] if twice else []),
    ]


GROUP = Group(
    "head",
    {
        "linear": Linear,
        "frames": Frames,
        "rcnn": RCNNHead,
        "captioner": Captions,
        "tagger": Tags,
        "ctc": Ctc,
        "mlp": MLPHead,
        "cosine": CosineHead,
        "narrow": Narrow,
        "ridge": Ridge,
        "logistic": Logistic,
        "svm": SVM,
        "forest": Forest,
        "knn": KNN,
        "nearest_mean": NearestMean,
        "majority": Majority,
    },
    "regraft.heads",
    about="what is grafted on the backbone",
)
