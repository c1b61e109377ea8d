"""Numbers as people give them: checked, and made plain. Knows nothing of what they are for."""

from __future__ import annotations

import math
import operator
from typing import Any

from calotype.errors import InputError


def whole(name: str, given: int, low: int, high: int) -> int:
    """A whole number from `low` to `high`, of Python or numpy. Raises `InputError` naming the argument."""
    try:
        found = operator.index(given)
    except TypeError:
        found = None
    if found is None or isinstance(given, bool) or not low <= found <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, got {given!r:.80}.")
    return found


def number(name: str, given: Any, most: float, hint: str = "") -> float:
    """A number from 0 to `most`; NaN is none. Raises `InputError` naming the argument."""
    try:
        found = math.nan if isinstance(given, (bool, str)) else float(given)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= most:
        raise InputError(f"{name} must be a number from 0 to {most}{hint}, got {given!r:.80}.")
    return found
