"""A claim beside its figures: supported, not supported, or not enough evidence.

Where several rows have what a claim names, val chooses among them. What is said of two rows is decided over the test pictures that both
answered: by McNemar's test or a permutation of signs, with Holm's correction over all claims of a paper, and by the interval of the
difference, for which seeds and pictures are drawn anew; a row of one run supports nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.papers import Claim
from regraft.report import comparing, words
from regraft.report.answered import Answers
from regraft.report.comparing import Interval
from regraft.report.rows import Board, Row, gathered, varying
from regraft.report.statistics import over_seeds
from regraft.tasks import LOWER

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "not enough evidence"
LEVEL = 0.05
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """A row of a claim."""

    name: str
    runs: int
    value: float  # the mean of its runs and metrics

    def __str__(self) -> str:
        return f"{words.plain(self.name, 120)} {self.value:.3f} ({words.count(self.runs, 'run')})"


@dataclass(frozen=True)
class Verdict:
    """What the figures say of one claim."""

    claim: Claim
    sides: tuple[Side, ...] = ()
    difference: Interval | None = None  # of what is said to be higher above what is said to be lower; for `near` from its value
    p: float | None = None  # two-sided; as it is
    adjusted: float | None = None  # by Holm, over all claims of the paper
    pictures: int = 0  # that the test rests on
    test: str = ""
    why: str = ""  # nothing could be decided
    doubt: str = ""  # what the figures do not tell, whatever they are
    against: str = ""  # what speaks against it beside the difference

    @property
    def word(self) -> str:
        if self.difference is None or self.doubt:
            return OPEN
        if self.against:
            return REFUTED
        _, low, high = self.difference
        if self.claim.near is not None:
            return SUPPORTED if -self.claim.within <= low and high <= self.claim.within else REFUTED if self._apart else OPEN
        if low > 0 and self.adjusted is not None and self.adjusted < LEVEL:
            return SUPPORTED
        return REFUTED if high < self.claim.within else OPEN

    @property
    def _apart(self) -> bool:
        assert self.difference is not None
        return self.difference.low > self.claim.within or self.difference.high < -self.claim.within

    @property
    def told(self) -> str:
        """Its figures, in a line."""
        if self.difference is None:
            return self.why
        sides = "; ".join(map(str, self.sides))
        value, low, high = self.difference
        told = f"{sides}; difference {value:+.3f} (95%: {low:+.3f} to {high:+.3f})"
        if self.p is not None and self.adjusted is not None:
            told += f", p {_p(self.p)}, with Holm's correction {_p(self.adjusted)} ({self.test}"
            told += f", {words.count(self.pictures, 'picture')})" if self.pictures else ")"
        return f"{told}; {self.reason}"

    @property
    def reason(self) -> str:
        """Why the word is what it is."""
        if self.doubt or self.against:
            return self.doubt or self.against
        within = f"{self.claim.within:g}"
        if self.claim.near is not None:
            return {
                SUPPORTED: f"it is within {within} of {self.claim.value:g}",
                REFUTED: f"it is further than {within} from {self.claim.value:g}",
                OPEN: f"the interval reaches across {within} from {self.claim.value:g}",
            }[self.word]
        return {
            SUPPORTED: "the interval lies above 0 and p below .05",
            REFUTED: f"the interval lies below {within}, the least difference that would count",
            OPEN: f"the interval reaches from no gain to more than {within}, or p is not below .05",
        }[self.word]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "says": self.claim.says,
            "verdict": self.word,
            "metrics": list(self.claim.metrics),
            "rows": [{"name": side.name, "runs": side.runs, "value": side.value} for side in self.sides],
            "difference": dict(self.difference._asdict()) if self.difference else None,
            "p": self.p,
            "p_holm": self.adjusted,
            "test": self.test,
            "pictures": self.pictures,
            "why": self.reason if self.difference else self.why,
        }


def judged(claims: Sequence[Claim], boards: Sequence[Board]) -> list[Verdict]:
    """Each claim's verdict."""
    found = [_judged(claim, boards) for claim in claims]
    adjusted = comparing.holm({str(at): verdict.p for at, verdict in enumerate(found) if verdict.p is not None})
    return [replace(verdict, adjusted=adjusted.get(str(at))) for at, verdict in enumerate(found)]


def _judged(claim: Claim, boards: Sequence[Board]) -> Verdict:
    found: list[tuple[str, Board, Row]] = []
    for given in claim.rows:
        asked = {**claim.where, **given}
        named = ", ".join(f"{key}={words.value(value)}" for key, value in asked.items())
        fitting = [(board, row) for board in boards for row in board.rows if all(_has(row, key, value) for key, value in asked.items())]
        if not fitting:
            return Verdict(claim, why=f"no row has {named}")
        if len({board.name for board, _ in fitting}) > 1:
            return Verdict(claim, why=f"rows of several data sets have {named}: name one")
        board, row = next(((board, row) for board, row in fitting if row.complete), fitting[0])  # the best on val
        if not _values(row, claim):
            return Verdict(claim, why=f"no run with {named} has {' and '.join(claim.metrics)}{_trouble(row)}")
        chosen = f" (of {len(fitting)} by val: {_apart(row, [each for _, each in fitting], board.axes)})" if len(fitting) > 1 else ""
        found.append((f"{named}{chosen}", board, row))
    rows = [row for _, _, row in found]
    if len({id(row) for row in rows}) < len(rows):
        return Verdict(claim, why=f"{rows[0].name} is compared with itself: name more keys")
    sides = tuple(Side(named, len(_values(row, claim)), fmean(_values(row, claim))) for named, _, row in found)
    if claim.near is not None:
        return _near(claim, sides[0], rows[0])
    if claim.metric != "accuracy":
        return _over_runs(claim, sides, rows)
    return _over_pictures(claim, sides, rows, _splits(claim, [board for _, board, _ in found]))


def _apart(row: Row, rows: Sequence[Row], axes: Sequence[str]) -> str:
    """What tells a row from the others that have what a claim names."""
    told = (f"{axis}={words.value(row.values.get(axis))}" for axis in varying(rows, axes))
    return ", ".join(told) or row.name


def _has(row: Row, key: str, value: Any) -> bool:
    return bool(row.runs) and key in row.runs[0].config and row.runs[0].config[key] == value


def _trouble(row: Row) -> str:
    troubles = [run.trouble for run in row.runs if run.trouble]
    return f" ({words.plain(words.first(troubles[0]), 200)})" if troubles else ""


def _values(row: Row, claim: Claim) -> list[float]:
    """Each run's mean over the claim's metrics, of those that have all."""
    found = [[run.metric(name) for name in claim.metrics] for run in row.done]
    return [fmean(value for value in values if value is not None) for values in found if None not in values]


def _splits(claim: Claim, boards: Sequence[Board]) -> list[str]:
    """The claim's splits, with each strength of a corruption by itself."""
    found: dict[str, None] = {}
    for split in claim.splits:
        strengths = [
            each for board in boards for each in board.strengths if gathered(f"{each}/{claim.metric}") == f"{split}/{claim.metric}"
        ]
        found |= dict.fromkeys(strengths or [split])
    return list(found)


def _near(claim: Claim, side: Side, row: Row) -> Verdict:
    assert claim.value is not None
    values = _values(row, claim)
    if len(set(values)) == 1:  # equal figures of several runs tell no spread
        row = replace(row, runs=row.done[:1])
    estimate = row.estimate(claim.metrics[0]) if len(claim.metrics) == 1 else None
    if estimate is not None and estimate.low is not None and estimate.high is not None:
        low, high = estimate.low, estimate.high
    elif len(set(values)) > 1:
        _, low, high = over_seeds(values)
    else:
        return Verdict(claim, (side,), why=f"{side}: one run of this metric says nothing of its spread")
    return Verdict(claim, (side,), Interval(side.value - claim.value, low - claim.value, high - claim.value))


def _over_pictures(claim: Claim, sides: tuple[Side, ...], rows: Sequence[Row], splits: Sequence[str]) -> Verdict:
    """Right or wrong, picture by picture; over several splits (shifts) a picture's mean."""
    answers = [[Answers.read(row, split) for split in splits] for row in rows]
    every = [each for some in answers for each in some]
    names = sorted(set.intersection(*(set(each.shared) for each in every)))
    if len(names) < 2:
        return Verdict(claim, sides, why="the rows have no answers to the same test pictures")
    if any(len({len(each.runs) for each in some}) > 1 for some in answers):
        return Verdict(claim, sides, why="not all runs have answered under all shifts")
    scores: list[Matrix] = [np.mean([each.right(names) for each in some], axis=0) for some in answers]  # of each row: (run, picture)
    means = [each.mean(axis=0) for each in scores]
    doubt = _single(sides)
    if claim.rising:
        steps = [(one, other) for one, other in pairwise(range(len(rows))) if comparing.both(scores[other], scores[one]).high < 0]
        against = "; ".join(f"{sides[other].name} lies below {sides[one].name}" for one, other in steps)
        difference, p = comparing.both(scores[-1], scores[0]), comparing.trend(means)
        return Verdict(claim, sides, difference, p, None, len(names), "permutation of rows", doubt=doubt, against=against)
    tested = comparing.paired(means[0], means[1])
    return Verdict(claim, sides, comparing.both(scores[0], scores[1]), tested.p, None, len(names), tested.name, doubt=doubt)


def _over_runs(claim: Claim, sides: tuple[Side, ...], rows: Sequence[Row]) -> Verdict:
    """A metric that is none of single pictures: over seeds. Equal figures throughout are one run's, since a seed changed nothing."""
    sign = -1 if claim.metric in LOWER and not claim.rising else 1  # less is better, but what rises rises
    values = [[sign * value for value in _values(row, claim)] for row in rows]
    if min(len(set(each)) for each in values) < 2:
        return Verdict(claim, sides, why=f"{claim.metric} is compared over seeds, and a row has no two runs that differ")
    upper, lower = (values[-1], values[0]) if claim.rising else (values[0], values[1])
    difference, p = comparing.welch(upper, lower)
    steps = [
        (one, other)
        for one, other in pairwise(range(len(rows)))
        if claim.rising and comparing.welch(values[other], values[one])[0].high < 0
    ]
    against = "; ".join(f"{sides[other].name} lies below {sides[one].name}" for one, other in steps)
    return Verdict(claim, sides, difference, p, None, 0, "Welch's t over seeds", against=against)


def _single(sides: Sequence[Side]) -> str:
    alone = [side.name for side in sides if side.runs < 2]
    return f"{alone[0]} has one run, which says nothing of another seed's" if alone else ""


def _p(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "< .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".", 1)
