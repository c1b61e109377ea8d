"""Figures of a load: latencies by percentile, and whether memory grows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .client import Outcome

PERCENTILES = (50, 90, 95, 99)
_BLOCKS = 12
_T = 2.228  # Student's t for 10 degrees of freedom and 95 %


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Return how calls ended, the rate of images, and the percentiles of their latencies in seconds."""
    ended = Counter(outcome.ended for outcome in outcomes)
    kinds = ("all", *sorted({outcome.kind for outcome in outcomes}))
    return {
        "calls": len(outcomes),
        "images": ended["image"],
        "refused": ended["refused"],
        "errors": {name: count for name, count in sorted(ended.items()) if name not in ("image", "refused")},
        "images_per_second": round(ended["image"] / seconds, 3),
        "latency_s": {kind: _percentiles(outcomes, kind) for kind in kinds},
    }


def slope(times: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return the slope of values over time with its interval of 95 %, from the means of twelve blocks.

    Single samples follow each other too closely for the interval of a line through them; means of blocks hardly do.

    Args:
        times: Seconds.
        values: For example megabytes.

    Returns:
        `per_minute`, and `low` and `high`, the ends of its interval.
    """
    blocks = [np.asarray(part, np.float64) for part in np.array_split(np.stack([times, values], 1), _BLOCKS)]
    x, y = np.array([block.mean(0) for block in blocks]).T
    centered = x - x.mean()
    per_second = float((centered * y).sum() / (centered**2).sum())
    rest = y - y.mean() - per_second * centered
    error = math.sqrt(float((rest**2).sum()) / (_BLOCKS - 2) / float((centered**2).sum()))
    ends = {"per_minute": per_second, "low": per_second - _T * error, "high": per_second + _T * error}
    return {name: round(60 * value, 4) for name, value in ends.items()}


def table(levels: Sequence[dict[str, Any]]) -> str:
    """Return the levels of a load as a table of text."""
    head = f"{'load':>6} {'calls/s':>8} {'images/s':>9} {'refused':>8} {'errors':>7}"
    lines = [head + "".join(f" {f'p{p} s':>8}" for p in PERCENTILES)]
    for level in levels:
        latency = level["latency_s"]["all"]
        cells = f"{level['load']:>6g} {level['rate']:>8.2f} {level['images_per_second']:>9.2f} {level['refused']:>8}"
        errors = sum(level["errors"].values())
        lines.append(f"{cells} {errors:>7}" + "".join(f" {latency[f'p{p}']:>8.2f}" for p in PERCENTILES))
    return "\n".join(lines)


def _percentiles(outcomes: Sequence[Outcome], kind: str) -> dict[str, float]:
    seconds = [each.seconds for each in outcomes if each.ended == "image" and kind in ("all", each.kind)]
    if not seconds:
        return {f"p{p}": math.nan for p in PERCENTILES}
    return {f"p{p}": round(float(np.percentile(seconds, p)), 4) for p in PERCENTILES}
