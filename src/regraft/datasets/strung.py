"""Sets of made lines of text, for reading: what each takes. Importing it costs milliseconds (no numpy, PIL or torch)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets.spec import DatasetSpec
from regraft.errors import Problem
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source


class Lines(DatasetSpec):
    """Common to both: so many lines for each split, which are a function of the seed."""

    train: int = doc("train lines", ge=1)
    val: int = doc("val lines", ge=0)
    test: int = doc("test lines", ge=0)
    line_seed: int = doc("seed of the lines: they stay as they are when the run's seed changes", ge=0)

    def problems(self) -> list[Problem]:
        given = {"folds": self.folds, "classes": self.classes, "per_class": self.per_class}
        remedy = "lines are made for each split, and their characters are no classes to choose from; give null"
        return [*super().problems(), *(Problem(key, value, remedy) for key, value in given.items() if value is not None)]


class DigitStrings(Lines):
    """Strings of scikit-learn's handwritten digits, side by side: a string of a split holds digits of that split alone."""

    shortest: int = doc("fewest digits of a string", ge=1)
    longest: int = doc("most digits of a string", ge=1, le=64)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import strings

        self.check()
        return strings.load_digits(self)

    def problems(self) -> list[Problem]:
        wrong = self.shortest > self.longest
        return [
            *super().problems(),
            *([Problem("shortest", self.shortest, f"at most longest ({self.longest}) is needed")] if wrong else []),
        ]


class Words(Lines):
    """Words of the embedded set's titles and tags in many fonts: no word, and no family of fonts of test, is in two splits."""

    fonts: str | None = doc(
        "folder of .ttf and .otf fonts, as /usr/share/fonts (null: those that matplotlib brings)", decides=False, path=True
    )
    most: int = doc("most words of a line", ge=1, le=8)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import strings

        self.check()
        return strings.load_words(self)

    def problems(self) -> list[Problem]:
        missing = self.fonts is not None and not Path(self.fonts).expanduser().is_dir()
        return [*super().problems(), *([Problem("fonts", self.fonts, "no such folder")] if missing else [])]
