"""The dataset group's catalogue: which sets there are and what each takes. Importing it costs milliseconds (no numpy, PIL or torch).

A set of your own: subclass `DatasetSpec`, let `open` give back a `regraft.datasets.source.Source`, and name the class in your package's
entry point `regraft.datasets`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.errors import Problem, UserError, either, nearest
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source

NOT_GIVEN = "???"  # what a mandatory value that nobody gave looks like in YAML


class DatasetSpec(Named):
    """What every dataset takes. Subclasses add their own keys and say how the set is opened."""

    size: int = doc("px: side of the square at which pictures are fed, unless data.size says otherwise", ge=1, decides=False)
    classes: list[str] | None = doc('keep only these classes, in this order (null: all); quote numbers: ["3","8"]')
    per_class: int | None = doc("at most this many train pictures per class, drawn by a fixed seed (null: all)", ge=1)
    on_error: Literal["raise", "skip"] = doc("raise: name the broken pictures and stop; skip: leave them out and list them", decides=False)

    def open(self, cache: Path) -> Source:
        """The set, ready to be read; `cache` is a folder where memos may be kept. Raises UserError for data that can't be used."""
        raise NotImplementedError(f"{type(self).__name__} must say how its set is opened")

    def names(self) -> list[str] | None:
        """The classes there are to choose from; None: not known before the set is opened. Raises UserError where there is no set."""
        return None

    def problems(self) -> list[Problem]:
        try:
            known = self.names()
        except UserError as error:
            return [problem._replace(key=problem.key.removeprefix("dataset.")) for problem in error.problems]
        return _unknown(self.classes, known)

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


class _Splitting(DatasetSpec):
    """A dataset that makes the splits which it does not bring."""

    val: float = doc("fraction 0..1 of the pictures that becomes val, where the set brings none (0: no val)", ge=0, lt=1)
    test: float = doc("fraction 0..1 of the pictures that becomes test, where the set brings none (0: no test)", ge=0, lt=1)
    split_seed: int = doc("seed of the splits and of per_class: they stay as they are when the run's seed changes", ge=0)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.val + self.test >= 1:
            remedy = f"with test = {self.test} nothing is left to train on; val + test must stay below 1"
            found.append(Problem("val", self.val, remedy))
        return found


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

        if self.path in ("", NOT_GIVEN):
            raise UserError(Problem("dataset.path", None, f"a value is needed: {type(self).model_fields['path'].description}"))
        return layout.find(self.path).classes


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
        Problem("classes", name, f"no such class; {nearest(name, known or []) or f'there are {either(known or [])}'}") for name in strange
    ]


GROUP = Group(
    "dataset",
    {"clipart": Clipart, "digits": Digits, "folder": Folder},
    "regraft.datasets",
    about="what is learnt from: pictures, their classes and their splits",
)
