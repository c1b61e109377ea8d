"""Medians with confidence intervals. Nothing here assumes that times are normally distributed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with its confidence interval. `low` and `high` are None if there are too few samples."""

    median: float
    low: float | None
    high: float | None
    coverage: float  # of the interval; 0 without one


def of_median(samples: Sequence[float], coverage: float = COVERAGE) -> Interval:
    """Return the distribution-free interval of a median: two order statistics (David and Nagaraja 2003, 7.1).

    The true median lies between the k-th smallest and the k-th largest of n independent samples, unless fewer than k of
    them lie on one side of it. This is a binomial probability with p = 1/2. k is the largest value that keeps the
    coverage. 95 % needs at least six samples.
    """
    ordered, n = sorted(samples), len(samples)
    interval = Interval(median=statistics.median(ordered), low=None, high=None, coverage=0.0)
    below = 0.0
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n  # fewer than k on one side
        if 1 - 2 * below < coverage:
            break
        interval = Interval(median=interval.median, low=ordered[k - 1], high=ordered[n - k], coverage=1 - 2 * below)
    return interval
