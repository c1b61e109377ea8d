"""Quality bounds: parse `--max-loss`, and check metrics against the bounds. `metrics` measures the images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from calotype.errors import InputError

# metric -> whether more is better
METRICS = {"psnr": True, "ssim": True, "lpips": False, "clip_drop": False, "judge_drop": False}
_BOUND = re.compile(r"\s*([a-z_-]+)\s*(>=|<=)\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True, kw_only=True)
class QualityBound:
    """A metric and its worst allowed value. PSNR is in dB; a drop is a difference of two shares from 0 to 1."""

    metric: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if METRICS[self.metric] else '<='}{self.limit:g}"

    def holds(self, value: float) -> bool:
        """Return whether the value is good enough. NaN is not."""
        return value >= self.limit if METRICS[self.metric] else value <= self.limit


def parse_bounds(texts: Iterable[str]) -> tuple[QualityBound, ...]:
    """Parse texts such as "psnr>=30,ssim>=0.95". Raise `InputError` if one is invalid."""
    bounds = tuple(_bound(part) for text in texts for part in text.split(","))
    if len({b.metric for b in bounds}) != len(bounds):
        raise InputError("a metric has more than one bound; pass one bound per metric.")
    return bounds


def _bound(text: str) -> QualityBound:
    match = _BOUND.fullmatch(text)
    metric = match[1].replace("-", "_") if match else ""
    if match is None or metric not in METRICS or (match[2] == ">=") != METRICS[metric]:
        allowed = ", ".join(f"{name}{'>=' if more else '<='}NUMBER" for name, more in METRICS.items())
        raise InputError(f"invalid bound {text!r}; expected {allowed}.", got=text, expected=allowed)
    try:
        return QualityBound(metric=metric, limit=float(match[3]))
    except ValueError:
        message = f"invalid bound {text!r}; expected a number in place of {match[3]!r}."
        raise InputError(message, got=text, expected="a number") from None


def failed(bounds: Iterable[QualityBound], figures: Mapping[str, float]) -> tuple[str, ...]:
    """Return a text for each bound that the metrics break; a missing metric breaks its bound."""
    broken = (b for b in bounds if not b.holds(figures.get(b.metric, float("nan"))))
    return tuple(f"{b.metric} is {figures.get(b.metric, float('nan')):.4g}, expected {b}" for b in broken)
