"""Checks of arguments: names and numbers. Knows nothing of their purpose."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from . import InputError

P = ParamSpec("P")
R = TypeVar("R")


def check_names(names: Iterable[str], known: Sequence[str], hints: Mapping[str, str]) -> None:
    """Check the names of a call's arguments. Raises `InputError` with the hint for a name, or with the nearest name."""
    for name in names:
        if name not in known:
            raise InputError(f"unknown argument {name!r}. {hints.get(name) or nearest(name, known)}", argument=name)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the nearest known name, or with all names if none is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"The nearest: {near[0]}." if near else f"Expected one of: {', '.join(known)}."


def with_known_names(hints: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that an unknown argument raises `InputError`. Its signature stays visible."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: P.args, **arguments: P.kwargs) -> R:
            check_names(arguments, known, hints)
            return function(*args, **arguments)

        return checked

    return decorate


def check_int(name: str, value: int, low: int, high: int) -> int:
    """Return an integer from `low` to `high`, of Python or numpy. Raises `InputError` naming the argument."""
    try:
        result = operator.index(value)
    except TypeError:
        result = None
    if result is None or isinstance(value, bool) or not low <= result <= high:
        expected = f"a whole number from {low} to {high}"
        raise InputError(f"{name} must be {expected}, got {value!r:.80}.", argument=name, got=value, expected=expected)
    return result


def check_bool(name: str, value: Any) -> bool:
    """Return a boolean. Raises `InputError` naming the argument."""
    if not isinstance(value, bool):
        message = f"{name} must be True or False, got {value!r:.80}."
        raise InputError(message, argument=name, got=value, expected="True or False")
    return value


def check_float(name: str, value: Any, high: float, hint: str = "", *, low: float = 0) -> float:
    """Return a number from `low` to `high`. Raises `InputError` naming the argument, also for NaN."""
    try:
        result = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not low <= result <= high:
        expected = f"a number from {low} to {high}"
        raise InputError(
            f"{name} must be {expected}{hint}, got {value!r:.80}.", argument=name, got=value, expected=expected
        )
    return result
