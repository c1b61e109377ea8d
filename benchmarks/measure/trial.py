"""Trials with a known amount of work, and the best rate that they reached. This module knows neither devices nor
libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One rate, in operations or bytes a second, or None with the reason."""

    value: float | None = None
    by: str = ""  # the trial that reached it
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PeakTrial:
    """A function to time, with a known amount of work."""

    name: str
    work: float  # operations, or bytes
    run: Callable[[], Any]
