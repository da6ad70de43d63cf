"""Rows beside each other: what was answered about the same test pictures, runs over seeds, and scores over several data sets.

Every draw is a function of SEED, so that the same runs give the same figures. scipy.stats and statsmodels are imported when they are used:
each takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

SEED = 0
RESAMPLES = 9_999  # of a bootstrap, and of signs where there are too many to go through
BATCH = 500  # of resamples at once
EXACT = 16  # pairs whose 2**n signs are all gone through


class Interval(NamedTuple):
    """A figure, and where another one of its kind may lie."""

    value: float
    low: float
    high: float


class Test(NamedTuple):
    """Whether two rows that answered about the same things differ."""

    p: float  # two-sided
    effect: float  # their difference in standard deviations of the pairs (Cohen 1988, d_z); nan where all differ alike
    name: str
    n: int  # pairs


def bootstrap(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean and its bias-corrected and accelerated bootstrap interval (Efron 1987, JASA 82:171-185). Raises ValueError for fewer than
    two values: nothing is known of their spread."""
    from scipy import stats

    values = _column(values)
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: a bootstrap needs two or more")
    middle = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(middle, middle, middle)
    draw = np.random.default_rng(SEED)
    found = stats.bootstrap((values,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, batch=1_000, method="BCa", rng=draw)
    return Interval(middle, float(found.confidence_interval.low), float(found.confidence_interval.high))


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p of the exact test that two rows are right equally often (McNemar 1947, Psychometrika 12:153-157): only pictures that one
    has right and the other wrong count. Both: right or wrong, picture by picture. Raises ValueError for rows of unequal length."""
    from statsmodels.stats import contingency_tables

    one, other = _pair(first, second)
    if not np.isin((one, other), (0, 1)).all():
        raise ValueError("McNemar's test is of answers that are right (1) or wrong (0)")
    only, missed = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    if only + missed == 0:
        return 1.0  # they are right about the same pictures
    return float(contingency_tables.mcnemar([[0, only], [missed, 0]], exact=True).pvalue)


def signs(differences: ArrayLike) -> float:
    """Two-sided p of the permutation test that each pair could as well stand the other way round (Fisher 1935, The Design of Experiments,
    section 21): by all signs up to 16 pairs that differ, by 9,999 drawn ones above."""
    from scipy import stats

    pairs = _column(differences)
    pairs = pairs[pairs != 0]  # their sign changes nothing
    if not len(pairs):
        return 1.0
    many = math.inf if len(pairs) <= EXACT else RESAMPLES
    draw = np.random.default_rng(SEED)
    found = stats.permutation_test((pairs,), np.sum, permutation_type="samples", vectorized=True, n_resamples=many, batch=1_000, rng=draw)
    return min(1.0, float(found.pvalue))


def paired(first: ArrayLike, second: ArrayLike) -> Test:
    """Two rows over the same things: each picture's score (of several seeds: its mean). Right or wrong is tested by McNemar's exact test,
    anything else by the permutation of signs. Raises ValueError for rows of unequal length, or of fewer than two answers."""
    one, other = _pair(first, second)
    if len(one) < 2:
        raise ValueError(f"{len(one)} answers: two or more are needed")
    differences = one - other
    spread = float(differences.std(ddof=1))
    effect = float(differences.mean()) / spread if spread else math.nan
    binary = np.isin((one, other), (0, 1)).all()
    p, name = (mcnemar(one, other), "McNemar, exact") if binary else (signs(differences), "permutation of signs")
    return Test(p, effect, name, len(differences))


def trend(rows: Sequence[ArrayLike]) -> float:
    """Two-sided p of the permutation test that scores over the same things change from row to row in the rows' order, as Page's test (1963,
    JASA 58:216-230) asks, but of the scores themselves: answers that are right or wrong are mostly ties, for which ranks have no power. The
    rows of each thing change places. Raises ValueError for fewer than three rows, or rows of unequal length."""
    table = np.stack([_column(row) for row in rows], axis=1)  # (things, rows)
    things, places = table.shape
    if places < 3:
        raise ValueError(f"{places} rows: a trend needs three or more")
    table = table[(table != table[:, :1]).any(axis=1)]  # a thing that is alike in all rows changes nothing
    if not len(table):
        return 1.0
    weights = np.arange(places) - (places - 1) / 2
    draw, found = np.random.default_rng(SEED), abs(float((table @ weights).sum()))
    beyond = 0
    for at in range(0, RESAMPLES, BATCH):
        drawn = draw.permuted(np.broadcast_to(table, (min(BATCH, RESAMPLES - at), *table.shape)), axis=2)
        beyond += int((np.abs((drawn @ weights).sum(axis=1)) >= found - 1e-9 * things).sum())
    return (beyond + 1) / (RESAMPLES + 1)


def welch(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> tuple[Interval, float]:
    """How far the mean of one row of runs is above another's, its interval, and the two-sided p (Welch 1947, Biometrika 34:28-35). Raises
    ValueError for fewer than two runs in a row."""
    from scipy import stats

    one, other = _column(first), _column(second)
    if min(len(one), len(other)) < 2:
        raise ValueError("two runs or more of each row are needed")
    value = float(one.mean() - other.mean())
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return Interval(value, value, value), float(value == 0)
    found = stats.ttest_ind(one, other, equal_var=False)
    within = found.confidence_interval(confidence)
    return Interval(value, float(within.low), float(within.high)), float(found.pvalue)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, each as high as it must be for all to hold together (Holm 1979, Scand. J. Statist. 6:65-70)."""
    from statsmodels.stats.multitest import multipletests

    if not ps:
        return {}
    return dict(zip(ps, map(float, multipletests(list(ps.values()), method="holm")[1]), strict=True))


def interquartile(scores: Sequence[ArrayLike], confidence: float = 0.95) -> Interval:
    """The mean of the middle half of all runs' scores, a row of seeds for each data set, and its interval by a bootstrap that draws seeds
    anew within each (Agarwal et al. 2021, NeurIPS 34, section 4). Raises ValueError where no data set has two runs."""
    from scipy import stats

    rows = [_column(row) for row in scores]
    if not any(len(row) > 1 for row in rows):
        raise ValueError("an interval over data sets needs one with two seeds or more")
    draw = np.random.default_rng(SEED)
    drawn = np.concatenate([row[draw.integers(len(row), size=(RESAMPLES, len(row)))] for row in rows], axis=1)
    middles = stats.trim_mean(drawn, 0.25, axis=1)
    low, high = np.quantile(middles, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(stats.trim_mean(np.concatenate(rows), 0.25)), float(low), float(high))


def both(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """How far one row is above another, as `beside`."""
    return beside(first, [second], confidence)[0]


def beside(first: ArrayLike, others: Sequence[ArrayLike], confidence: float = 0.95) -> list[Interval]:
    """How far one row is above each other one, with both of what it rests on drawn anew: the seeds, and the test pictures (the same ones
    for all rows; Owen 2007, Ann. Appl. Stat. 1:386-411, the pigeonhole bootstrap). Each: scores (seed, picture); the seeds are not paired.
    An interval is the same whatever other rows there are. Raises ValueError where the pictures differ in number."""
    rows = [np.atleast_2d(np.asarray(row, dtype=float)) for row in (first, *others)]
    n = rows[0].shape[1]
    for row in rows[1:]:
        if row.shape[1] != n:
            raise ValueError(f"{n} and {row.shape[1]} pictures: rows are compared over the same ones")
    pictures, scores = np.random.default_rng((SEED, 0)), np.concatenate(rows).T
    drawn = np.concatenate([_shares(pictures, n, min(BATCH, RESAMPLES - at)) @ scores for at in range(0, RESAMPLES, BATCH)])
    one, *rest = np.split(drawn, np.cumsum([len(row) for row in rows])[:-1], axis=1)  # of each row (times, seed)
    mean, found = _over_seeds(one, 1), []
    for row, part in zip(rows[1:], rest, strict=True):
        low, high = np.quantile(mean - _over_seeds(part, 2), [0.5 - confidence / 2, 0.5 + confidence / 2])
        found.append(Interval(float(rows[0].mean() - row.mean()), float(low), float(high)))
    return found


def _over_seeds(drawn: Matrix, stream: int) -> Matrix:
    """(times, seed) -> the means over seeds drawn anew: (times)."""
    return (drawn * _shares(np.random.default_rng((SEED, stream)), drawn.shape[1], RESAMPLES)).sum(axis=1)


def _shares(draw: np.random.Generator, n: int, times: int) -> Matrix:
    """What part of each resample of n things each of them is: (times, n)."""
    drawn = draw.integers(n, size=(times, n)) + n * np.arange(times)[:, None]
    return np.bincount(drawn.ravel(), minlength=times * n).reshape(times, n) / n


def _column(values: ArrayLike) -> Matrix:
    column = np.asarray(values, dtype=float)
    if column.ndim != 1 or not np.isfinite(column).all():
        raise ValueError("a row of finite numbers is needed")
    return column


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Matrix, Matrix]:
    one, other = _column(first), _column(second)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} answers: two rows over the same things are needed")
    return one, other
