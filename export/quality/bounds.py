"""How far a picture may be from float32's: bounds in the words of `--max-loss`, and whether figures are inside.

Knows no pictures: figures are measured by `quality` and judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from calotype.errors import InputError

# metric -> whether more is better
METRICS = {"psnr": True, "ssim": True, "lpips": False, "clip_drop": False, "judge_drop": False}
_BOUND = re.compile(r"\s*([a-z_-]+)\s*(>=|<=)\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A metric and the worst value that is allowed. PSNR in dB; drops are differences of shares from 0 to 1."""

    metric: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if METRICS[self.metric] else '<='}{self.limit:g}"

    def holds(self, value: float) -> bool:
        """Is the value good enough? What is no number is not."""
        return value >= self.limit if METRICS[self.metric] else value <= self.limit


def parse_bounds(texts: Iterable[str]) -> tuple[Bound, ...]:
    """Bounds from "psnr>=30,ssim>=0.95", or several such texts. Raises `InputError`."""
    bounds = tuple(_bound(part) for text in texts for part in text.split(","))
    if len({b.metric for b in bounds}) != len(bounds):
        raise InputError("each metric has one bound.")
    return bounds


def _bound(text: str) -> Bound:
    found = _BOUND.fullmatch(text)
    allowed = ", ".join(f"{name}{'>=' if more else '<='}NUMBER" for name, more in METRICS.items())
    if found is None:
        raise InputError(f"{text!r} is no bound; write {allowed}.")
    metric, sign, number = found[1].replace("-", "_"), found[2], found[3]
    if metric not in METRICS or (sign == ">=") != METRICS[metric]:
        raise InputError(f"{text!r} is no bound; write {allowed}.")
    try:
        return Bound(metric=metric, limit=float(number))
    except ValueError:
        raise InputError(f"{text!r}: {number!r} is no number.") from None


def failed(bounds: Iterable[Bound], figures: Mapping[str, float]) -> tuple[str, ...]:
    """The bounds that the figures break, each with its figure; empty where all hold."""
    broken = (b for b in bounds if not b.holds(figures.get(b.metric, float("nan"))))
    return tuple(f"{b.metric} is {figures.get(b.metric, float('nan')):.4g}, wanted {b}" for b in broken)
