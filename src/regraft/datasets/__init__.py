"""The dataset group's catalogue: which sets there are and what each takes. Importing it costs milliseconds (no numpy, PIL or torch).

A set of your own: subclass `DatasetSpec`, let `open` give back a `regraft.datasets.source.Source`, and name the class in your package's
entry point `regraft.datasets`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.datasets import names
from regraft.errors import Problem, UserError, either, nearest
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source

TOLD = 50  # names that one error lists at most
NOT_GIVEN = "???"  # what a mandatory value that nobody gave looks like in YAML


class DatasetSpec(Named):
    """What every dataset takes. Subclasses add their own keys and say how the set is opened."""

    size: int = doc("px: side of the square at which pictures are fed, unless data.size says otherwise", ge=1, decides=False)
    classes: list[str] | None = doc('keep only these classes, in this order (null: all); quote numbers: ["3","8"]')
    per_class: int | None = doc("at most this many train pictures per class, drawn by a fixed seed (null: all)", ge=1)
    on_error: Literal["raise", "skip"] = doc("raise: name the broken pictures and stop; skip: leave them out and list them", decides=False)

    folds: int | None = doc(
        "k of k-fold: all pictures are dealt to k parts, whatever splits the set brings; test is part `fold`, val the next one, train the "
        "rest (null: no k-fold)",
        ge=3,
    )
    fold: int = doc("0..folds-1: which part is test; dataset.fold=range(5) runs them all", ge=0)

    def open(self, cache: Path) -> Source:
        """The set, ready to be read; `cache` is a folder where memos may be kept. Raises UserError for data that can't be used."""
        raise NotImplementedError(f"{type(self).__name__} must say how its set is opened")

    def names(self) -> list[str] | None:
        """The classes there are to choose from; None: not known before the set is opened. Raises UserError where there is no set."""
        return None

    def problems(self) -> list[Problem]:
        found = []
        if self.folds is not None and self.fold >= self.folds:
            found.append(Problem("fold", self.fold, f"there are {self.folds} folds, counted from 0: 0 to {self.folds - 1}"))
        if self.folds is None and self.fold:
            found.append(Problem("fold", self.fold, "there are no folds to choose from; give dataset.folds=5, or leave dataset.fold at 0"))
        try:
            known = self.names()
        except UserError as error:
            return [*found, *(problem._replace(key=problem.key.removeprefix("dataset.")) for problem in error.problems)]
        return [*found, *_unknown(self.classes, known)]

    def check(self) -> None:
        """Raises UserError with every problem, keys as the user writes them (`dataset.path`)."""
        if found := self.problems():
            raise UserError(problem._replace(key=f"dataset.{problem.key}") for problem in found)


class Clipart(DatasetSpec):
    """The embedded set: 991 public-domain drawings of 128 x 128 px in 19 classes, with its own grouped splits (573/208/210)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import clipart

        self.check()
        return clipart.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import clipart

        return clipart.classes()


class _WithVal(DatasetSpec):
    """A dataset that brings test and makes val out of its train pictures."""

    val: float = doc("fraction 0..1 of the pictures that becomes val, where the set brings none (0: no val)", ge=0, lt=1)
    split_seed: int = doc("seed of the splits, folds and per_class: they stay as they are when the run's seed changes", ge=0)


class _Splitting(_WithVal):
    """A dataset that makes the splits which it does not bring."""

    test: float = doc("fraction 0..1 of the pictures that becomes test, where the set brings none (0: no test)", ge=0, lt=1)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.val + self.test >= 1:
            remedy = f"with test = {self.test} nothing is left to train on; val + test must stay below 1"
            found.append(Problem("val", self.val, remedy))
        return found


class Published(DatasetSpec):
    """A set that somebody published: it lies in a folder, or goes there."""

    path: str | None = doc("folder where the set lies or goes (null: datasets/<name> in the cache folder)", decides=False, path=True)
    download: bool = doc("true: fetch what is missing; false: say which files to place, where, and their checksums", decides=False)


class CatsDogs(_Splitting):
    """Clipart's cats and dogs, by its tags: 16 and 14 drawings, which is enough for k-fold only."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import clipart

        self.check()
        return clipart.load_tagged(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import clipart

        return clipart.CATS_DOGS


class Digits(_Splitting):
    """scikit-learn's handwritten digits: 1,797 grey pictures of 8 x 8 px, classes "0" to "9"; nothing to download."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import digits

        self.check()
        return digits.load(self)

    def names(self) -> list[str]:
        return [str(digit) for digit in range(10)]


class Folder(_Splitting):
    """Your own pictures: PATH/<class>/*, or PATH/<split>/<class>/* with split folders train, val (valid, validation) and test."""

    path: str = doc("folder of your pictures, laid out as PATH/<class>/* or PATH/<split>/<class>/*", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import folder

        self.check()
        return folder.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import layout

        _need_path(self, self.path)
        return layout.find(self.path).classes


class FashionMnist(Published, _WithVal):
    """Fashion-MNIST: 60,000 and 10,000 grey pictures of clothes, 28 x 28 px, 10 classes (30 MB)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_fashion_mnist(self, cache)

    def names(self) -> list[str]:
        return names.FASHION_MNIST


class Cifar10(Published, _WithVal):
    """CIFAR-10: 50,000 and 10,000 colour pictures of 32 x 32 px, 10 classes (170 MB)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_cifar(self, cache)

    def names(self) -> list[str]:
        return names.CIFAR10


class Cifar100(Published, _WithVal):
    """CIFAR-100: 50,000 and 10,000 colour pictures of 32 x 32 px, 100 classes in 20 kinds (170 MB)."""

    labels: Literal["fine", "coarse"] = doc("fine (100 classes) or coarse (20)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_cifar(self, cache)

    def names(self) -> list[str]:
        return names.CIFAR100 if self.labels == "fine" else names.CIFAR100_COARSE


class OxfordPets(Published, _WithVal):
    """Oxford-IIIT Pet: 3,680 and 3,669 photographs of 37 breeds of cats and dogs (800 MB)."""

    target: Literal["breed", "cat_dog"] = doc("what is learnt: breed (37 classes) or cat_dog (2)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import pets

        self.check()
        return pets.load(self, cache)

    def names(self) -> list[str]:
        return names.OXFORD_PETS if self.target == "breed" else names.OXFORD_SPECIES


class Gtsrb(Published, _WithVal):
    """German traffic signs: 26,640 and 12,630 photographs of 43 signs, 15 to 250 px; tracks of one sign stay together (280 MB)."""

    roi: bool = doc("true: cut out the sign's box; false: the whole photograph, with a border of about 10%")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import gtsrb

        self.check()
        return gtsrb.load(self, cache)

    def names(self) -> list[str]:
        return names.GTSRB


class Lfw(Published, _Splitting):
    """Labelled faces in the wild, funneled: 13,233 faces of 250 x 250 px; with least=20, 3,023 faces of 62 people (240 MB)."""

    least: int = doc("people with fewer pictures than this are left out", ge=1)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import lfw

        self.check()
        return lfw.load(self, cache)


class ImageNet(_WithVal):
    """ImageNet's 1,000 classes (ILSVRC2012), or the part of it that is there: PATH/train/<WordNet id>/*, PATH/val/<WordNet id>/*."""

    path: str = doc("folder that holds train/<WordNet id>/* and val/<WordNet id>/*, or parts of them", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import imagenet

        self.check()
        return imagenet.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import imagenet

        _need_path(self, self.path)
        imagenet.find(self.path)
        return list(names.imagenet_words())

    def problems(self) -> list[Problem]:
        found = super().problems()
        ids = [names.imagenet_words().get(name, name) for name in self.classes or ()]
        if not found and len(set(ids)) < len(ids):
            found.append(Problem("classes", self.classes, "a class is named twice; name each once"))
        return found


class Csv(_Splitting):
    """Your own table: a csv file whose lines name a picture and its class, its tags or its numbers."""

    path: str = doc("the csv file, with column names in its first line, in UTF-8", decides=False, path=True)
    root: str | None = doc("folder that the table's paths are relative to (null: the csv's folder)", decides=False, path=True)
    delimiter: str | None = doc("character between columns (null: found among comma, semicolon and tab)", min_length=1, max_length=1)
    file: str = doc("column of the pictures' paths")
    label: str | None = doc("column of the classes (null: the one called label, where neither labels nor targets is given)")
    labels: list[str] | str | None = doc("many labels: a list of columns of 0 and 1, or one column of tags (null: none)")
    separator: str = doc("between the tags of a `labels` column", min_length=1)
    targets: list[str] | str | None = doc("a column of numbers to predict, or several (null: none)", min_length=1)
    split: str | None = doc("column of the splits: train, val (valid, validation), test (null: all are made)")
    group: str | None = doc("column of groups: pictures of one group never cross a split that is made (null: none)")

    @property
    def numbers(self) -> list[str] | None:
        """The columns of the numbers that are learnt; None: none are."""
        return [self.targets] if isinstance(self.targets, str) else self.targets

    @property
    def column(self) -> str | None:
        """The column of the classes; None: many labels or numbers are learnt."""
        return self.label or (None if self.labels or self.targets else "label")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import tables

        self.check()
        return tables.load(self, cache)

    def names(self) -> list[str] | None:
        _need_path(self, self.path)
        return None

    def problems(self) -> list[Problem]:
        found = super().problems()
        for key, place in (("path", self.path), ("root", self.root)):
            if place and place != NOT_GIVEN and not Path(place).expanduser().exists():
                found.append(Problem(key, place, f"no such {'file' if key == 'path' else 'folder'}"))
        given = [key for key in ("label", "labels", "targets") if getattr(self, key)]
        if len(given) > 1:
            spare = " ".join(f"dataset.{key}=null" for key in given[:-1])
            remedy = f"only one of label, labels, targets can be learnt; give {spare}"
            found.append(Problem(given[-1], getattr(self, given[-1]), remedy))
        if given == ["targets"] and self.classes is not None:
            found.append(Problem("classes", self.classes, "numbers have no classes; name the columns to predict in dataset.targets"))
        return found


class HuggingFace(_Splitting):
    """Parquet files on this disk, as Hugging Face's datasets writes them; splits by file names (train-*, validation-*, test-*)."""

    path: str = doc("folder of .parquet files (at any depth), or one file", decides=False, path=True)
    image: str | None = doc("column of the pictures, a struct of bytes and path (null: image or img)")
    label: str | None = doc("column of the classes, whole numbers or words (null: label or labels)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import parquet

        self.check()
        return parquet.load(self, cache)

    def names(self) -> list[str] | None:
        from regraft.datasets import parquet

        _need_path(self, self.path)
        parquet.find(self.path)
        return None


def _need_path(spec: DatasetSpec, path: str) -> None:
    if path in ("", NOT_GIVEN):
        raise UserError(Problem("dataset.path", None, f"a value is needed: {type(spec).model_fields['path'].description}"))


def _unknown(given: list[str] | None, known: list[str] | None) -> list[Problem]:
    """What is wrong with the chosen classes."""
    if given is None:
        return []
    if len(set(given)) < 2:
        return [Problem("classes", given, "at least two different classes are needed, or null for all")]
    if len(set(given)) < len(given):
        return [Problem("classes", given, "a class is named twice; name each once")]
    strange = [name for name in given if known is not None and name not in known]
    return [
        Problem("classes", name, f"no such class; {nearest(name, known or []) or f'there are {either((known or [])[:TOLD])}'}")
        for name in strange
    ]


GROUP = Group(
    "dataset",
    {
        "clipart": Clipart,
        "cats_dogs": CatsDogs,
        "digits": Digits,
        "fashion_mnist": FashionMnist,
        "cifar10": Cifar10,
        "cifar100": Cifar100,
        "oxford_pets": OxfordPets,
        "gtsrb": Gtsrb,
        "lfw": Lfw,
        "imagenet": ImageNet,
        "folder": Folder,
        "csv": Csv,
        "huggingface": HuggingFace,
    },
    "regraft.datasets",
    about="what is learnt from: pictures, their classes and their splits",
)
