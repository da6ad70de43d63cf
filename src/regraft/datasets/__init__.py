"""The dataset group's catalogue: which sets there are and what each takes. Importing it costs milliseconds (no numpy, PIL or torch).

A set of your own: subclass `DatasetSpec`, let `open` give back a `regraft.datasets.source.Source`, and name the class in your package's
entry point `regraft.datasets`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.datasets import names
from regraft.datasets.captioned import Captions, ClipartTags, ClipartTitles, CocoCaptions
from regraft.datasets.detection import Boxes, Coco, Scenes, Voc
from regraft.datasets.sequences import Chorales, JapaneseVowels, Series, Spam, Text
from regraft.datasets.spec import DatasetSpec as DatasetSpec
from regraft.datasets.spec import Published, Shifting, Splitting, WithVal, absent, need_path
from regraft.datasets.strung import DigitStrings, Words
from regraft.errors import Problem
from regraft.registry import Group, doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source


class Clipart(Shifting):
    """The embedded set: 991 public-domain drawings of 128 x 128 px in 19 classes, with its own grouped splits (573/208/210)."""

    split_seed: int = doc("seed of folds, per_class and labelled: they stay as they are when the run's seed changes", ge=0)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import clipart

        self.check()
        return clipart.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import clipart

        return clipart.classes()


class CatsDogs(Shifting, Splitting):
    """Clipart's cats and dogs, by its tags: 16 and 14 drawings, which is enough for k-fold only."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import clipart

        self.check()
        return clipart.load_tagged(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import clipart

        return clipart.CATS_DOGS


class Digits(Shifting, Splitting):
    """scikit-learn's handwritten digits: 1,797 grey pictures of 8 x 8 px, classes "0" to "9"; nothing to download."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import digits

        self.check()
        return digits.load(self)

    def names(self) -> list[str]:
        return [str(digit) for digit in range(10)]


class Folder(Shifting, Splitting):
    """Your own pictures: PATH/<class>/*, or PATH/<split>/<class>/* with split folders train, val (valid, validation) and test."""

    path: str = doc("folder of your pictures, laid out as PATH/<class>/* or PATH/<split>/<class>/*", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import folder

        self.check()
        return folder.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import layout

        need_path(self, self.path)
        return layout.find(self.path).classes


class FashionMnist(Shifting, Published, WithVal):
    """Fashion-MNIST: 60,000 and 10,000 grey pictures of clothes, 28 x 28 px, 10 classes (30 MB)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_fashion_mnist(self, cache)

    def names(self) -> list[str]:
        return names.FASHION_MNIST


class Cifar10(Shifting, Published, WithVal):
    """CIFAR-10: 50,000 and 10,000 colour pictures of 32 x 32 px, 10 classes (170 MB)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_cifar(self, cache)

    def names(self) -> list[str]:
        return names.CIFAR10


class Cifar100(Shifting, Published, WithVal):
    """CIFAR-100: 50,000 and 10,000 colour pictures of 32 x 32 px, 100 classes in 20 kinds (170 MB)."""

    labels: Literal["fine", "coarse"] = doc("fine (100 classes) or coarse (20)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import arrays

        self.check()
        return arrays.load_cifar(self, cache)

    def names(self) -> list[str]:
        return names.CIFAR100 if self.labels == "fine" else names.CIFAR100_COARSE


class OxfordPets(Shifting, Published, WithVal):
    """Oxford-IIIT Pet: 3,680 and 3,669 photographs of 37 breeds of cats and dogs (800 MB)."""

    target: Literal["breed", "cat_dog"] = doc("what is learnt: breed (37 classes) or cat_dog (2)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import pets

        self.check()
        return pets.load(self, cache)

    def names(self) -> list[str]:
        return names.OXFORD_PETS if self.target == "breed" else names.OXFORD_SPECIES


class Gtsrb(Shifting, Published, WithVal):
    """German traffic signs: 26,640 and 12,630 photographs of 43 signs, 15 to 250 px; tracks of one sign stay together (280 MB)."""

    roi: bool = doc("true: cut out the sign's box; false: the whole photograph, with a border of about 10%")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import gtsrb

        self.check()
        return gtsrb.load(self, cache)

    def names(self) -> list[str]:
        return names.GTSRB


class Lfw(Shifting, Published, Splitting):
    """Labelled faces in the wild, funneled: 13,233 faces of 250 x 250 px; with least=20, 3,023 faces of 62 people (240 MB)."""

    least: int = doc("people with fewer pictures than this are left out", ge=1)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import lfw

        self.check()
        return lfw.load(self, cache)


class ImageNet(Shifting, WithVal):
    """ImageNet's 1,000 classes (ILSVRC2012), or the part of it that is there: PATH/train/<WordNet id>/*, PATH/val/<WordNet id>/*."""

    path: str = doc("folder that holds train/<WordNet id>/* and val/<WordNet id>/*, or parts of them", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import imagenet

        self.check()
        return imagenet.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import imagenet

        need_path(self, self.path)
        imagenet.find(self.path)
        return list(names.imagenet_words())

    def problems(self) -> list[Problem]:
        found = super().problems()
        ids = [names.imagenet_words().get(name, name) for name in self.classes or ()]
        if not found and len(set(ids)) < len(ids):
            found.append(Problem("classes", self.classes, "a class is named twice; name each once"))
        return found


class Csv(Shifting, Splitting):
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
        need_path(self, self.path)
        return None

    def problems(self) -> list[Problem]:
        found = super().problems() + absent(self, {"path": "file", "root": "folder"})
        given = [key for key in ("label", "labels", "targets") if getattr(self, key)]
        if len(given) > 1:
            spare = " ".join(f"dataset.{key}=null" for key in given[:-1])
            remedy = f"only one of label, labels, targets can be learnt; give {spare}"
            found.append(Problem(given[-1], getattr(self, given[-1]), remedy))
        if given == ["targets"] and self.classes is not None:
            found.append(Problem("classes", self.classes, "numbers have no classes; name the columns to predict in dataset.targets"))
        return found


class HuggingFace(Shifting, Splitting):
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

        need_path(self, self.path)
        parquet.find(self.path)
        return None


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
        "scenes": Scenes,
        "coco": Coco,
        "voc": Voc,
        "boxes": Boxes,
        "clipart_titles": ClipartTitles,
        "clipart_tags": ClipartTags,
        "coco_captions": CocoCaptions,
        "captions": Captions,
        "japanese_vowels": JapaneseVowels,
        "series": Series,
        "chorales": Chorales,
        "text": Text,
        "spam": Spam,
        "digit_strings": DigitStrings,
        "words": Words,
    },
    "regraft.datasets",
    about="what is learnt from: pictures, their classes and their splits",
)
