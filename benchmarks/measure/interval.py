"""Medians, quantiles, and how sure one can be of them. Nothing here assumes that times are distributed normally."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median, and where the true one lies. `low` and `high` are None where the samples are too few to say."""

    median: float
    low: float | None
    high: float | None
    coverage: float  # of the interval; 0 where there is none

    def excludes(self, value: float) -> bool:
        """Is the value outside, with certainty? Never where there is no interval."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def quantile(samples: Sequence[float], share: float) -> float:
    """Linear between the samples, as numpy's; of one sample that sample."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def of_median(samples: Sequence[float], coverage: float = COVERAGE) -> Interval:
    """The distribution-free interval of a median: two order statistics (David and Nagaraja 2003, 7.1).

    The true median lies between the k-th smallest and the k-th largest of n independent samples unless fewer than k of
    them fell on one side of it, as so many coins would; k is the largest that keeps the coverage. At least six samples
    are needed for 95 %.
    """
    ordered, n = sorted(samples), len(samples)
    median = statistics.median(ordered)
    best, below = 0, 0.0
    reached = 0.0
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n  # fewer than k on one side
        if 1 - 2 * below < coverage:
            break
        best, reached = k, 1 - 2 * below
    if not best:
        return Interval(median=median, low=None, high=None, coverage=0.0)
    return Interval(median=median, low=ordered[best - 1], high=ordered[n - best], coverage=reached)
