"""What every dataset is to the config: what it takes, and how it is opened. No numpy, PIL or torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from regraft.datasets import corruptions
from regraft.errors import Problem, UserError, either, nearest
from regraft.registry import Named, doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source

TOLD = 50  # names that one error lists at most
NOT_GIVEN = "???"  # what a mandatory value that nobody gave looks like in YAML


class DatasetSpec(Named):
    """What every dataset takes. Subclasses add their own keys and say how the set is opened."""

    size: int | None = doc(
        "px: side of the square at which pictures are fed, unless data.size says otherwise (null: they are none)", ge=1, decides=False
    )
    classes: list[str] | None = doc('keep only these classes, in this order (null: all); quote numbers: ["3","8"]')
    per_class: int | None = doc("at most this many train pictures per class, drawn by a fixed seed (null: all)", ge=1)
    labelled: int | None = doc(
        "at most this many train pictures per class have a label; the others teach only what needs none (freeze=greedy); null: all have",
        ge=1,
        before=None,
    )
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

    def opened(self, cache: Path) -> Source:
        """The same, with test under all shifts that are asked for."""
        return self.open(cache)

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

    def unfit(self, kind: str) -> list[Problem]:
        """What can't be asked of a set that has this kind of truth."""
        if self.labelled is None or kind == "class":
            return []
        return [Problem("labelled", self.labelled, f"labels are counted class by class, and dataset={self.name} has {kind}; null works")]

    def check(self) -> None:
        """Raises UserError with every problem, keys as the user writes them (`dataset.path`)."""
        if found := self.problems():
            raise UserError(problem._replace(key=f"dataset.{problem.key}") for problem in found)


Names = Annotated[dict[str, str], BeforeValidator(lambda given: _words(given))]


class Shifting(DatasetSpec):
    """A set of pictures, which can be made worse, and whose test split can be measured under shifts too."""

    corruption: str | None = doc(
        "all pictures of all splits made worse: noise:3, blur:5, jpeg:1, contrast:2, ... (null: as they are)", decides=False
    )
    rename: Names | None = doc("{CLASS: NEW NAME}; classes of one name become one (null: as they are)", decides=False)

    shift: list[str] = doc(
        "test once more under each: noise, blur, jpeg, contrast (all five strengths; noise:3: one), or a folder of pictures in <class>/",
        decides=False,  # the shifted pictures are in the fingerprint
        path=True,
        words=corruptions.WORDS,
    )

    def opened(self, cache: Path) -> Source:
        source = self.open(cache)
        if self.corruption or self.rename:
            from regraft.datasets import altered

            worse = corruptions.parsed(self.corruption or "")
            source = altered.of(source, self.rename or {}, worse[0] if worse else None)
        if not self.shift:
            return source
        from regraft.datasets import shifted

        return shifted.of(source, self.shift, cache)

    def problems(self) -> list[Problem]:
        strange = [word for word in self.shift if word not in corruptions.WORDS and not Path(word).expanduser().is_dir()]
        remedy = f"neither a folder nor a corruption; there are {either(corruptions.KINDS)}, and noise:1 to noise:5"
        found = [*super().problems(), *(Problem("shift", word, nearest(word, corruptions.WORDS) or remedy) for word in strange)]
        if self.corruption is not None and self.corruption not in (strengths := [each for each in corruptions.WORDS if ":" in each]):
            remedy = f"one corruption of one strength is needed: {either(strengths)}"
            found.append(Problem("corruption", self.corruption, nearest(self.corruption, strengths) or remedy))
        return found


def _words(given: Any) -> Any:
    """Keys and values as text: on the command line a class that is a number can't be quoted as a key."""
    return {str(key): str(value) for key, value in given.items()} if isinstance(given, Mapping) else given


class WithVal(DatasetSpec):
    """A dataset that brings test and makes val out of its train pictures."""

    val: float = doc("fraction 0..1 of the pictures that becomes val, where the set brings none (0: no val)", ge=0, lt=1)
    split_seed: int = doc("seed of the splits, folds and per_class: they stay as they are when the run's seed changes", ge=0)


class Splitting(WithVal):
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


def need_path(spec: DatasetSpec, path: str) -> None:
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
    return [] if known is None else strangers("classes", given, known)


def strangers(key: str, given: Iterable[str], known: Sequence[str]) -> list[Problem]:
    """The names that are no classes."""
    strange = [name for name in given if name not in known]
    return [Problem(key, name, f"no such class; {nearest(name, known) or f'there are {either(known[:TOLD])}'}") for name in strange]


def absent(spec: DatasetSpec, what: Mapping[str, str]) -> list[Problem]:
    """The files and folders that are given and not there; `what`: key -> what it names (file, folder)."""
    return [
        Problem(key, place, f"no such {named}")
        for key, named in what.items()
        if (place := getattr(spec, key)) and place != NOT_GIVEN and not Path(place).expanduser().exists()
    ]
