"""Tests between rows give what was published of them."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regraft.report import comparing
from regraft.report.statistics import over_seeds

# Student (1908), Biometrika 6:1-25, section IX: hours of sleep gained with one drug rather than the other, ten patients
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
# Darwin's maize, crossed above self-fertilised, in eighths of an inch (Fisher 1935, The Design of Experiments, section 21)
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# Efron and Tibshirani (1993), An Introduction to the Bootstrap, table 14.1: 26 children's spatial test A
SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]


def test_the_interval_over_seeds_is_students():
    assert over_seeds(SLEEP) == pytest.approx((1.58, 0.70, 2.46), abs=0.005)


def test_signs_give_what_fisher_counted():
    assert comparing.signs(MAIZE) == 1726 / 2**15  # 835 + 28 of the 32,768 sums are as great as 314, and as many as small as -314


def test_signs_that_are_drawn_come_near_those_that_are_all_gone_through(monkeypatch):
    monkeypatch.setattr(comparing, "EXACT", 0)
    assert comparing.signs(MAIZE) == pytest.approx(1726 / 2**15, abs=0.007)  # three standard errors of 9,999 draws


def test_mcnemar_gives_what_agresti_has():
    """Agresti (2002), Categorical Data Analysis, table 10.1: 1,600 Britons asked twice, 150 and 86 of whom changed their minds."""
    cells = [(1, 1, 794), (1, 0, 150), (0, 1, 86), (0, 0, 570)]
    first = np.repeat([one for one, _, _ in cells], [n for *_, n in cells])
    second = np.repeat([other for _, other, _ in cells], [n for *_, n in cells])
    assert comparing.mcnemar(first, second) == pytest.approx(stats.binomtest(86, 236).pvalue)
    normal = math.erfc(math.sqrt((86 - 150) ** 2 / (86 + 150) / 2))  # his chi-squared of 17.36 with one degree of freedom
    assert comparing.mcnemar(first, second) == pytest.approx(normal, rel=0.25)
    found = comparing.paired(first, second)
    assert (found.name, found.n) == ("McNemar, exact", 1600)
    assert comparing.bootstrap(first - second) == pytest.approx((0.04, 0.021, 0.059), abs=0.002)  # his interval of the difference


def test_the_bootstrap_gives_what_efron_and_tibshirani_have():
    """Table 14.2: the 90% interval of the variance of 26 children's test is (115.8, 259.6) by BCa; here the same machinery, of the mean,
    beside the interval that their formula (14.10) gives by hand."""
    values = np.array(SPATIAL, dtype=float)
    found = stats.bootstrap((values,), np.var, confidence_level=0.9, n_resamples=9999, rng=np.random.default_rng(0), method="BCa")
    assert tuple(found.confidence_interval) == pytest.approx((115.8, 259.6), rel=0.02)
    mine = comparing.bootstrap(values, 0.9)
    assert mine == pytest.approx(_bca(values, 0.9), abs=0.15)


def _bca(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    draw, n = np.random.default_rng(1), len(values)
    means = np.sort(values[draw.integers(n, size=(20_000, n))].mean(axis=1))
    z = stats.norm.ppf((means < values.mean()).mean())
    jack = (values.sum() - values) / (n - 1)
    gap = jack.mean() - jack
    a = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)
    ends = [z + stats.norm.ppf(p) for p in (0.5 - confidence / 2, 0.5 + confidence / 2)]
    return values.mean(), *np.quantile(means, [stats.norm.cdf(z + end / (1 - a * end)) for end in ends])


def test_holm_steps_down():
    """Of .005, .01, .03 and .04 the first two hold at .05: .005 < .05/4, .01 < .05/3, .03 > .05/2 (Holm 1979, section 3)."""
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert comparing.holm(given) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert comparing.holm({}) == {}


@settings(max_examples=40)
@given(st.dictionaries(st.text("abc", max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_makes_a_test_surer_nor_turns_two_round(ps):
    found = comparing.holm(ps)
    assert all(p <= found[name] <= min(1, p * len(ps)) for name, p in ps.items())
    assert all(found[a] <= found[b] for a in ps for b in ps if ps[a] < ps[b])


def test_the_interquartile_mean_is_of_the_middle_half():
    """Agarwal et al. (2021), section 4.3: a quarter of all runs is left out at each end, whatever their data sets."""
    found = comparing.interquartile([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 100.0]])
    assert found.value == pytest.approx((0.3 + 0.4 + 0.5 + 0.6) / 4)
    assert found.low < found.value < found.high
    alone = comparing.interquartile([[0.1, 0.1], [0.3, 0.3], [0.5, 0.5], [0.7, 0.7]])
    assert alone == pytest.approx((0.4, 0.4, 0.4))  # within a data set nothing varies, and data sets are not drawn anew
    with pytest.raises(ValueError, match="two seeds"):
        comparing.interquartile([[0.1], [0.2]])


def test_seeds_and_pictures_together_are_less_sure_than_either():
    draw = np.random.default_rng(3)
    skill = draw.uniform(0, 1, 200)
    one = (draw.uniform(size=(3, 200)) < skill + np.array([[0.0], [0.1], [0.2]])).astype(float)
    other = (draw.uniform(size=(3, 200)) < skill - 0.05).astype(float)
    whole = comparing.both(one, other)
    assert whole.value == pytest.approx(one.mean() - other.mean())
    pictures = comparing.bootstrap(one.mean(axis=0) - other.mean(axis=0))
    assert whole.high - whole.low > pictures.high - pictures.low
    assert comparing.paired(one.mean(axis=0), other.mean(axis=0)).name == "permutation of signs"
    same = comparing.both(one[:1], one[:1])
    assert same == (0, 0, 0)
    assert comparing.beside(one, [one[:2], other]) == [comparing.both(one, one[:2]), whole], "a row changes nothing for another one"


def test_equal_rows_differ_in_nothing():
    assert comparing.paired([1, 0, 1], [1, 0, 1]).p == 1.0
    assert comparing.bootstrap([0, 0, 0]) == (0, 0, 0)
    assert comparing.signs([0.0, 0.0]) == 1.0


@pytest.mark.parametrize(("first", "second"), [([1, 0], [1]), ([1], [1]), ([1, math.nan], [1, 0]), ([[1, 0]], [[1, 0]])])
def test_rows_that_are_none_are_refused(first, second):
    with pytest.raises(ValueError, match="needed"):
        comparing.paired(first, second)


def test_two_rows_of_runs_are_compared_as_welch_did():
    """Student's sleep data as two groups: t = -1.8608, df = 17.776, p = .07939, -3.3655 to .2055 (R's manual, t.test)."""
    first, second = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    interval, p = comparing.welch(first, second)
    assert interval == pytest.approx((-1.58, -3.3654832, 0.2054832), abs=1e-6)
    assert p == pytest.approx(0.07939, abs=1e-5)
    assert comparing.welch([1.0, 1.0], [1.0, 1.0]) == ((0.0, 0.0, 0.0), 1.0)
    with pytest.raises(ValueError, match="two runs"):
        comparing.welch([1.0], [1.0, 2.0])


def test_a_trend_is_tested_by_all_orders_of_the_rows():
    """Against all 6**4 orders of four things in three rows, one by one."""
    table = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.5, 1.0]])
    sums = [sum(order[2] - order[0] for order in orders) for orders in product(*(list(permutations(row)) for row in table))]
    exact = sum(abs(each) >= (table[:, 2] - table[:, 0]).sum() for each in sums) / len(sums)
    assert comparing.trend(list(table.T)) == pytest.approx(exact, abs=0.015)
    assert comparing.trend(list(table.T[::-1])) == pytest.approx(exact, abs=0.015), "two-sided"
    assert comparing.trend([[1.0, 1.0]] * 3) == 1.0
    with pytest.raises(ValueError, match="three"):
        comparing.trend([[1.0], [2.0]])


def test_a_trend_of_answers_that_are_mostly_alike_is_seen():
    """.79, .84, .90 of 200 pictures, each row right where the one before was: ranks with their many ties would not tell (p = .08)."""
    rows = [[float(place < right) for place in range(200)] for right in (158, 168, 180)]
    assert comparing.trend(rows) < 0.001
