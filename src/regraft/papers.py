"""What a paper is to the config: a citation, a claim, the sweeps that test it, and each claim as a statement that figures can decide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from regraft.errors import Problem, UserError, either, nearest, shown
from regraft.record import PlainLoader
from regraft.registry import Spec, doc, parse

NAME = r"[a-z][a-z0-9_]*"
PLACE = re.compile(rf"\{{({NAME})\}}")  # of an earlier step's run folder, in a step's overrides
WHOLE = ("rows", "shifts")  # figures that are of no axis
Given = dict[str, Any]  # key -> value, as a row of a report has them


class Step(Spec):
    """A run, or a sweep, as one would give it to `regraft train`."""

    name: str = doc(
        "small letters: the folder of its runs; {name} in a later step's overrides is the folder of its one run", pattern=f"^{NAME}$"
    )
    overrides: list[str] = doc("as on the command line; several values make a sweep", min_length=1)


class Claim(Spec):
    """One statement. `better` and `than`, `rising` or `near` say what is compared; a row is named by keys and values that it alone has."""

    says: str = doc("the statement, as a sentence")
    metrics: list[str] = doc(
        "SPLIT/METRIC, whose mean is compared: [test/accuracy], [noise-3/accuracy, noise-5/accuracy]",
        default=["test/accuracy"],
        min_length=1,
    )
    where: Given = doc("{KEY: VALUE} that all rows of the statement have", default={})
    better: Given | None = doc("{KEY: VALUE} of the row that is said to be better", default=None)
    than: Given | None = doc("{KEY: VALUE} of the row that it is compared with", default=None)
    rising: list[Given] | None = doc("rows in the order in which they are said to rise", default=None, min_length=3)
    near: Given | None = doc("{KEY: VALUE} of the row whose figure is said to lie near `value`", default=None)
    value: float | None = doc("the figure that `near` is compared with", default=None)
    within: float = doc("the difference below which two figures count as the same, in the metric's unit", default=0.02, gt=0)

    def problems(self) -> list[Problem]:
        if strange := [name for name in self.metrics if not re.fullmatch(r"[^/]+/\w+", name) or name.split("/")[0] in ("train", "val")]:
            remedy = "SPLIT/METRIC is needed, and claims are of test or its shifts: test/accuracy, noise-3/accuracy"
            return [Problem("metrics", strange[0], remedy)]
        if len({name.rpartition("/")[2] for name in self.metrics}) > 1:
            return [Problem("metrics", self.metrics, "one metric is needed; it may be of several splits")]
        given = {key for key in ("better", "than", "rising", "near", "value") if getattr(self, key) is not None}
        if given in ({"better", "than"}, {"rising"}, {"near", "value"}):
            return []
        return [Problem("better", self.better, "a claim says one thing: better and than, rising, or near and value")]

    @property
    def rows(self) -> list[Given]:
        """The rows that it speaks of: what is said to be better first; those that rise from the lowest on."""
        return [self.near] if self.near is not None else self.rising or [self.better or {}, self.than or {}]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that it speaks of: test, noise-3, ..."""
        return tuple(name.rpartition("/")[0] for name in self.metrics)

    @property
    def metric(self) -> str:
        return self.metrics[0].rpartition("/")[2]


class Published(Spec):
    """A figure that the paper gives, with the place where it stands."""

    what: str = doc("what was measured")
    value: str = doc("the figure, as it is printed")
    source: str = doc("where it stands: a table, a section")


class Paper(Spec):
    """One file of conf/paper."""

    title: str = doc("of the question")
    cite: str = doc("authors, year, title, venue")
    claim: str = doc("what the paper says, in a sentence or two")
    budget: str = doc("what the runs here take, and on which machine")
    differs: str = doc("how these runs differ from the paper's")
    runs: list[dict[str, Any]] = doc("the sweeps, one after the other: {name, overrides}; empty: there is no miniature", default=[])
    full: list[dict[str, Any]] = doc("the same at full size", default=[])
    needs: str = doc("what the full size needs: data, weights, machines", default="")
    axes: list[str] = doc("the keys that make the table's columns and its figures", min_length=1)
    figure: str = doc("what is drawn beside the table: a key of axes, rows (each with its interval) or shifts", default="rows")
    chosen: list[str] = doc("those of axes of which each row of table and figures has the value that val has chosen", default=[])
    claims: list[dict[str, Any]] = doc("the statements that are tested", min_length=1)
    full_claims: list[dict[str, Any]] = doc("those of the full size, where its rows have other names", default=[])
    published: list[dict[str, Any]] = doc("the paper's own figures: {what, value, source}", default=[])

    def problems(self) -> list[Problem]:
        known, strange = [*self.axes, *WHOLE], [key for key in self.chosen if key not in self.axes]
        found = (
            [] if self.figure in known else [Problem("figure", self.figure, nearest(self.figure, known) or f"there are {either(known)}")]
        )
        return found + [Problem("chosen", key, nearest(key, self.axes) or f"axes has {either(self.axes)}") for key in strange]

    def steps(self, full: bool) -> list[Step]:
        """The sweeps of one size."""
        return [_read(Step, values, f"{'full' if full else 'runs'}[{at}]") for at, values in enumerate(self.full if full else self.runs)]

    def statements(self, full: bool) -> list[Claim]:
        """The claims of one size."""
        key = "full_claims" if full and self.full_claims else "claims"
        return [_read(Claim, values, f"{key}[{at}]") for at, values in enumerate(getattr(self, key))]

    def figures(self) -> list[Published]:
        return [_read(Published, values, f"published[{at}]") for at, values in enumerate(self.published)]


def names() -> list[str]:
    """The papers that come with regraft."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read(word: str) -> Paper:
    """The paper of this name, or in this file (NAME.yaml). Raises UserError with every mistake in it."""
    file = Path(word).expanduser()
    if word in names():
        held, at = (_folder() / f"{word}.yaml").read_bytes(), f"paper/{word}.yaml"
    elif file.suffix in (".yaml", ".yml") and file.is_file():
        held, at = file.read_bytes(), word
    else:
        raise UserError(Problem("NAME", word, f"no such paper, and no file; {nearest(word, names()) or f'there are {either(names())}'}"))
    try:
        values = yaml.load(held.decode("utf-8"), PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(Problem(at, None, f"can't be read as YAML: {next(iter(str(error).splitlines()), '')}")) from None
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(Problem(at, shown(values), "keys and values are needed: title, cite, claim, ..."))
    try:
        paper = _read(Paper, values, "")
        steps = [paper.steps(False), paper.steps(True)]
        paper.statements(False), paper.statements(True), paper.figures()
    except UserError as error:
        raise UserError(problem._replace(key=f"{at}: {problem.key}") for problem in error.problems) from None
    if found := [problem for some in steps for problem in _misplaced(some)]:
        raise UserError(problem._replace(key=f"{at}: {problem.key}") for problem in found)
    return paper


def _misplaced(steps: Sequence[Step]) -> Iterator[Problem]:
    """Steps of the same name, and places that no earlier step fills."""
    known: list[str] = []
    for step in steps:
        for override in step.overrides:
            for name in PLACE.findall(override):
                if name not in known:
                    yield Problem(step.name, override, f"{{{name}}} is no earlier step; there are {either(known) if known else 'none'}")
        if step.name in known:
            yield Problem(step.name, None, "two steps have this name; each needs its own")
        known.append(step.name)


def _read(spec: type[Any], values: Any, at: str) -> Any:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(Problem(at, shown(values), f"keys and values are needed: {', '.join(spec.model_fields)}"))
    found = parse(spec, values, at)
    if problems := found.problems():
        raise UserError(problem._replace(key=f"{at}.{problem.key}" if at else problem.key) for problem in problems)
    return found


def _folder() -> Any:
    return resources.files("regraft.conf") / "paper"
