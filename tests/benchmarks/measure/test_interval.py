"""Tests that the interval of a median has its stated coverage for several distributions."""

import numpy as np
import pytest

from calotype.benchmarks.measure.interval import of_median

# Distributions with a known median: symmetric, skewed as times are, and with far outliers.
DRAWS = {
    "normal": (lambda random, n: random.normal(1, 0.1, n), 1.0),
    "lognormal": (lambda random, n: np.exp(random.normal(0, 0.5, n)), 1.0),
    "exponential": (lambda random, n: random.exponential(1, n), float(np.log(2))),
    "cauchy": (lambda random, n: random.standard_cauchy(n), 0.0),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [6, 9, 20, 51])
def test_the_interval_covers_the_true_median(name, count):
    draw, true = DRAWS[name]
    random = np.random.default_rng(count)
    interval = [of_median(draw(random, count)) for _ in range(2000)]
    covered = sum(interval.low <= true <= interval.high for interval in interval) / len(interval)
    stated = interval[0].coverage
    assert stated >= 0.95
    assert abs(covered - stated) < 4 * np.sqrt(stated * (1 - stated) / 2000) + 1e-9  # exact, and not only conservative


def test_the_interval_is_as_narrow_as_possible():
    """For twenty samples: the sixth and the fifteenth, 95.86 % (David and Nagaraja 2003)."""
    interval = of_median(list(range(1, 21)))
    assert (interval.low, interval.high) == (6, 15)
    assert interval.coverage == pytest.approx(0.9586, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_samples_give_no_interval(count):
    interval = of_median([1.0] * count)
    assert (interval.low, interval.high, interval.coverage) == (None, None, 0.0)
    assert interval.median == 1.0


def test_order_does_not_matter():
    values = np.random.default_rng(0).normal(size=15)
    assert of_median(values) == of_median(values[::-1])
