"""How sure a number is: intervals for what was measured on a finite number of pictures, or with a finite number of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval for a proportion (Wilson 1927, JASA 22:209-212): honest near 0 and 1, and for small n.

    The closed formula, since importing scipy.stats takes most of a second; a test holds it equal to scipy's.
    Raises ValueError for counts that are none, and for n = 0: nothing was measured.
    """
    from statistics import NormalDist

    if not (0 <= correct <= n and n > 0 and 0 < confidence < 1):
        raise ValueError(f"{correct} of {n} at confidence {confidence}: 0 <= correct <= n, n >= 1 and 0 < confidence < 1 are needed")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at the ends the bound is exact, and rounding must not move it
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == n else middle + half)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of two values or more, with n - 1; the standard library's own, in fractions, is thirty times as slow."""
    middle = fmean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of runs and its interval by Student's t (1908): it says how far another mean of so many seeds may lie, and nothing of the
    test set's size. Raises ValueError for fewer than two runs: one says nothing of the others."""
    from scipy.special import stdtrit  # scipy.stats takes most of a second to import

    n = len(values)
    if n < 2:
        raise ValueError(f"{n} runs: an interval over seeds needs two or more")
    middle = fmean(values)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * deviation(values) / math.sqrt(n)
    return middle, middle - half, middle + half
