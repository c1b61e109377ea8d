"""A trial of known work, and the best figure that trials reached. Knows no device and no library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One figure, operations or bytes a second; None with the reason."""

    value: float | None = None
    by: str = ""  # whose best it was
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Something to time that does known work."""

    name: str
    work: float  # operations, or bytes
    run: Callable[[], Any]
