"""Names of stages and blocks -> places in a chain, and where it must be cut so that a policy's names are whole pieces of it.

A stage's name means the whole stage, a block's name (layer3.1) that block alone, wherever a policy is given one. Where a policy names
a block, the chain is split there first, so that what a phase trains is a list of whole pieces of the chain again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from regraft.errors import Problem, UserError, nearest

HEAD = "head"
Stages = Mapping[str, Sequence[str]] | Sequence[str]  # stages, lowest first, with their blocks (`Chain.layout`); or the stages alone


class Place(NamedTuple):
    """A stage or block that a policy names."""

    key: str  # of the config, for errors
    name: str
    reach: Literal["from", "until", "alone"]  # where the chain must be cut: at its begin, its end, or both


class Layout:
    """Names -> places in a chain. The chain is a row of blocks (a stage of one piece is one); a name means those in [first, last)."""

    def __init__(self, stages: Stages) -> None:
        known = stages if isinstance(stages, Mapping) else dict.fromkeys(stages, ())
        self.stages = tuple(known)  # as published: a cut adds none
        self.row = [block for stage, blocks in known.items() for block in (blocks or (stage,))]
        self.spans: dict[str, tuple[int, int]] = {}
        first = 0
        for stage, blocks in known.items():
            self.spans[stage] = (first, first + (len(blocks) or 1))
            first += len(blocks) or 1
        self.pieces = {
            self.spans[stage][0]: stage for stage in self.stages
        }  # first block -> what the chain calls the stage that begins there
        for place, block in enumerate(self.row):
            self.spans.setdefault(block, (place, place + 1))

    def span(self, place: Place) -> tuple[int, int]:
        """Raises UserError for a name that the chain does not have."""
        if place.name in self.spans:
            return self.spans[place.name]
        hint = nearest(place.name, self.spans) or f"the stages are {', '.join(self.stages)}"
        raise UserError(Problem(place.key, place.name, f"no such stage or block in this net; {hint}"))

    def cut(self, places: Iterable[Place]) -> list[str]:
        """The blocks at which the chain must be split, the lowest first. Raises UserError with every name that is not there."""
        ends: set[int] = set()
        problems: list[Problem] = []
        for place in places:
            try:
                first, last = self.span(place)
            except UserError as error:
                problems += error.problems
            else:
                ends |= {"from": {first}, "until": {last}, "alone": {first, last}}[place.reach]
        if problems:
            raise UserError(dict.fromkeys(problems))
        new = {end: self.row[end] for end in sorted(ends - {len(self.row)}) if end not in self.pieces}
        self.pieces = dict(sorted((self.pieces | new).items()))
        return list(new.values())

    def names(self, first: int, last: int | None = None) -> tuple[str, ...]:
        """The chain's stages that begin in [first, last)."""
        return tuple(name for begin, name in self.pieces.items() if begin >= first and (last is None or begin < last))

    def stage(self, block: int) -> int:
        """The number of the stage that a block lies in."""
        return next(number for number, stage in enumerate(self.stages) if self.spans[stage][0] <= block < self.spans[stage][1])

    def inside(self, names: Iterable[str]) -> tuple[str, ...]:
        """The chain's stages that lie in any of these stages and blocks, in its order."""
        spans = [self.spans[name] for name in names]
        return tuple(name for begin, name in self.pieces.items() if any(first <= begin < last for first, last in spans))
