"""Arguments as people give them: names and numbers, checked and made plain. Knows nothing of what they are for."""

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
    """Check the names of a call's arguments. Raises `InputError` with a name's hint, or with the nearest name."""
    for name in names:
        if name not in known:
            raise InputError(f"there is no argument {name!r}. {hints.get(name) or nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence with the known name that is nearest, or with all of them where none is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"The nearest: {near[0]}." if near else f"There are: {', '.join(known)}."


def with_known_names(hints: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that an unknown argument raises `InputError`; its signature stays in sight."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: P.args, **arguments: P.kwargs) -> R:
            check_names(arguments, known, hints)
            return function(*args, **arguments)

        return checked

    return decorate


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
