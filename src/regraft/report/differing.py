"""Two runs beside each other: what differs in what decided them, and which test pictures they answer differently.

All text that comes from files goes through `plain` into rich's Text: no markup, no control characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from regraft.record import PREDICTIONS, RunFolder
from regraft.report import words
from regraft.report.comparing import mcnemar
from regraft.report.pictures import answers

LISTED = 20  # pictures that are named
KEYS = ("status", "seed", "git", "code", "packages", "machine", "data", "weights", "batch", "resolved", "kept", "metrics")  # of a record
ALIKE = "the same"


class Fact(NamedTuple):
    """A key and its two values; None: one of the runs does not have it."""

    key: str
    first: Any
    second: Any


class Answer(NamedTuple):
    """A test picture that two runs answer differently."""

    id: str
    truth: str
    first: str
    second: str


@dataclass(frozen=True)
class Answers:
    """What two runs say of the same test pictures. Right: as often as both, one or neither is; None where an answer is not simply right
    or wrong (boxes, captions, numbers)."""

    shared: int
    only_first: int  # pictures that the other's test split does not hold
    only_second: int
    differ: list[Answer]
    right: dict[str, int] | None
    p: float | None  # of the exact test that both are right equally often


@dataclass(frozen=True)
class Difference:
    """All that differs, by section; a section that is the same is not there."""

    sections: dict[str, list[Fact]]
    answers: Answers | None  # None: one of them has no predictions

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        told = asdict(self.answers) | {"differ": [row._asdict() for row in self.answers.differ]} if self.answers else None
        return {"sections": {name: [fact._asdict() for fact in facts] for name, facts in self.sections.items()}, "answers": told}


def compare(first: RunFolder, second: RunFolder) -> Difference:
    """Raises UserError for folders that hold no run, or one that can't be read."""
    sections = {"config": facts(first.config, second.config)}
    one, other = first.record, second.record
    sections |= {name: facts({name: one.get(name)}, {name: other.get(name)}) for name in KEYS}
    return Difference({name: found for name, found in sections.items() if found}, _answers(first, second))


def facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Fact]:
    """The dotted keys whose values differ, in the order of the first."""
    one, other = dict(_leaves(first)), dict(_leaves(second))
    return [Fact(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _answers(first: RunFolder, second: RunFolder) -> Answers | None:
    one, other = answers(first / PREDICTIONS), answers(second / PREDICTIONS)
    if one is None or other is None:
        return None
    pairs = one.join(other.unique("id", keep="first"), on="id", how="inner", suffix="_second", maintain_order="left")
    rows = pairs.select("id", "truth", "predicted", "predicted_second").rows()
    shown = [(str(name), *map(_said, said)) for name, *said in rows]
    differ = [Answer(*row) for row in shown if row[2] != row[3]]
    right = p = None
    if rows and all(words.at(folder.record, "data.kind") == "class" for folder in (first, second)):
        hits = [[int(row[place] == row[1]) for row in shown] for place in (2, 3)]
        counted = Counter(zip(*hits, strict=True))
        right = {"both": counted[1, 1], "first": counted[1, 0], "second": counted[0, 1], "neither": counted[0, 0]}
        p = mcnemar(*hits)
    return Answers(len(rows), len(one) - len(rows), len(other) - len(rows), differ, right, p)


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# On the terminal


def table(first: RunFolder, second: RunFolder, found: Difference) -> RenderableType:
    """What differs, one line for each key."""
    names = [words.plain(words.shorter(folder.path), 60) for folder in (first, second)]
    parts: list[RenderableType] = [words.listing([("first", names[0]), ("second", names[1])])]
    if found.sections:
        grid = words.table()
        for column in ("", "key", "first", "second"):
            grid.add_column(column, overflow="fold")
        for section, rows in found.sections.items():
            _rows(grid, section, rows)
        parts.append(grid)
    same = [name for name in ("config", *KEYS) if name not in found.sections]
    told = [(ALIKE, ", ".join(same))] if same else []
    thing = words.thing(words.at(first.record, "data.input.kind"))
    parts.append(words.listing(told + _told(found.answers, thing)))
    if found.answers and found.answers.differ:
        parts.append(_named(found.answers.differ, thing))
    return Constrain(Group(*parts), words.WIDTH)


def _rows(grid: Table, section: str, rows: list[Fact]) -> None:
    for number, fact in enumerate(rows):
        key = fact.key.removeprefix(f"{section}.")
        cells = ["" if number else section, words.plain(key, 60), _shown(fact.first), _shown(fact.second)]
        grid.add_row(*map(Text, cells))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else words.value(value)


def _told(found: Answers | None, thing: str) -> list[tuple[str, str]]:
    if found is None:
        return [("answers", "one of the runs has no predictions yet")]
    alone = [
        f"{words.count(n, 'more')} of the {which} alone" for n, which in ((found.only_first, "first"), (found.only_second, "second")) if n
    ]
    if not found.shared:
        return [("answers", f"no test {thing} is in both ({', '.join(alone)})" if alone else f"neither has test {thing}s")]
    agree = f"{len(found.differ)} of {words.count(found.shared, f'test {thing}')} answered differently"
    told = [("answers", f"{agree}{'; ' if alone else ''}{', '.join(alone)}")]
    if found.right is not None:
        right = found.right
        alone_right = f"only the first {right['first']}, only the second {right['second']}"
        told.append(("right", f"both {right['both']}, {alone_right}, neither {right['neither']}"))
        told.append(("", f"p = {found.p:.2g} that both are right equally often (McNemar's exact test)"))
    return told


def _named(differ: list[Answer], thing: str) -> RenderableType:
    grid = words.table()
    for column in (thing, "truth", "first says", "second says"):
        grid.add_column(column, overflow="fold")
    for row in differ[:LISTED]:
        grid.add_row(*(Text(words.plain(cell, 60)) for cell in row))
    more = f"and {len(differ) - LISTED:,} more; --json names all" if len(differ) > LISTED else ""
    return Group(grid, Text(more)) if more else grid
