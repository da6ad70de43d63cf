"""A claim beside its figures: supported, not supported, or not enough evidence.

Where several rows have what a claim names, val chooses among them. What is said of two rows is decided over the test pictures that both
answered: by McNemar's test or a permutation of signs, with Holm's correction over all claims of a paper, and by the interval of the
difference, for which seeds and pictures are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.papers import Claim
from regraft.report import comparing, words
from regraft.report.answered import Answers
from regraft.report.comparing import Interval
from regraft.report.rows import Board, Row
from regraft.report.statistics import over_seeds

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

    @property
    def word(self) -> str:
        if self.difference is None:
            return OPEN
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
            "on": list(self.claim.on),
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
    rows = []
    for given in claim.rows:
        asked = {**claim.where, **given}
        named = ", ".join(f"{key}={words.value(value)}" for key, value in asked.items())
        fitting = [row for board in boards for row in board.rows if all(_has(row, key, value) for key, value in asked.items())]
        if not fitting:
            return Verdict(claim, why=f"no row has {named}")
        if len({board.name for board in boards for row in board.rows if row in fitting}) > 1:
            return Verdict(claim, why=f"rows of several data sets have {named}: name one")
        if not any(_values(fitting[0], claim)):
            return Verdict(claim, why=f"no run with {named} has {' and '.join(claim.on)}{_trouble(fitting[0])}")
        chosen = f" (of {len(fitting)} by val: {fitting[0].name})" if len(fitting) > 1 else ""
        rows.append((f"{named}{chosen}", fitting[0]))
    sides = tuple(Side(named, len(_values(row, claim)), float(np.mean(_values(row, claim)))) for named, row in rows)
    if claim.near is not None:
        return _near(claim, sides[0], rows[0][1])
    if claim.metric != "accuracy":
        return _over_runs(claim, sides, [row for _, row in rows])
    return _over_pictures(claim, sides, [row for _, row in rows])


def _has(row: Row, key: str, value: Any) -> bool:
    return bool(row.runs) and row.runs[0].config.get(key) == value


def _trouble(row: Row) -> str:
    troubles = [run.trouble for run in row.runs if run.trouble]
    return f" ({words.plain(words.first(troubles[0]), 200)})" if troubles else ""


def _values(row: Row, claim: Claim) -> list[float]:
    """Each run's mean over the claim's metrics, of those that have all."""
    found = [[run.metric(name) for name in claim.on] for run in row.done]
    return [float(np.mean([value for value in values if value is not None])) for values in found if None not in values]


def _near(claim: Claim, side: Side, row: Row) -> Verdict:
    assert claim.value is not None
    estimate = row.estimate(claim.on[0]) if len(claim.on) == 1 else None
    if estimate is None or estimate.low is None or estimate.high is None:
        values = _values(row, claim)
        if len(values) < 2:
            return Verdict(claim, (side,), why=f"{side.name}: one run of this metric says nothing of its spread")
        _, low, high = over_seeds(values)
    else:
        low, high = estimate.low, estimate.high
    return Verdict(claim, (side,), Interval(side.value - claim.value, low - claim.value, high - claim.value))


def _over_pictures(claim: Claim, sides: tuple[Side, ...], rows: Sequence[Row]) -> Verdict:
    """Right or wrong, picture by picture; over several splits (shifts) a picture's mean."""
    answers = [[Answers.read(row, split) for split in claim.splits] for row in rows]
    shared: set[str] | None = None
    for each in (each for some in answers for each in some):
        shared = set(each.shared) if shared is None else shared & set(each.shared)
    names = sorted(shared or ())
    if len(names) < 2 or len({len(each.runs) for some in answers for each in some} - {0}) == 0:
        return Verdict(claim, sides, why="the rows have no answers to the same test pictures")
    scores: list[Matrix] = []
    for some in answers:
        if len({len(each.runs) for each in some}) > 1:
            return Verdict(claim, sides, why="not all runs have answered under all shifts")
        scores.append(np.mean([each.right(names) for each in some], axis=0))
    upper, lower = (scores[-1], scores[0]) if claim.rising else (scores[0], scores[1])
    difference = comparing.both(upper, lower)
    means = [each.mean(axis=0) for each in scores]
    if claim.rising:
        return Verdict(claim, sides, difference, comparing.trend(means), None, len(names), "Page's trend test")
    tested = comparing.paired(means[0], means[1])
    return Verdict(claim, sides, difference, tested.p, None, len(names), tested.name)


def _over_runs(claim: Claim, sides: tuple[Side, ...], rows: Sequence[Row]) -> Verdict:
    """A metric that is none of single pictures: over seeds."""
    values = [_values(row, claim) for row in rows]
    upper, lower = (values[-1], values[0]) if claim.rising else (values[0], values[1])
    if min(len(upper), len(lower)) < 2:
        return Verdict(claim, sides, why=f"{claim.metric} is compared over seeds, and two or more of each row are needed")
    difference, p = comparing.welch(upper, lower)
    return Verdict(claim, sides, difference, p, None, 0, "Welch's t over seeds")


def _p(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "< .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".", 1)
