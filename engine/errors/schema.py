"""Checks of JSON data: types, ranges and structure. The error names the field.

A check is a function of a value and the field's path ("profile.multiple"). It returns None or raises `SchemaError`.
Checks combine: `list_of(integer(1, 9))`. Knows no file format.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

Check = Callable[[Any, str], None]


class SchemaError(ValueError):
    """A field is missing, unknown, or has an invalid value. `field` is its path."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def mismatch(where: str, got: Any, expected: str) -> NoReturn:
    """Raise the `SchemaError` for the value of a field."""
    raise SchemaError(where, f"is {reprlib.repr(got)}; expected {expected}")


def integer(low: int, high: int) -> Check:
    """Return a check for an integer in a range. Booleans are not integers."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            mismatch(where, value, f"an integer from {low} to {high}")

    return check


def number(low: float, high: float) -> Check:
    """Return a check for a finite number in a range."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            mismatch(where, value, f"a number from {low:g} to {high:g}")

    return check


def figure(value: Any, where: str) -> None:
    """Check for a measured number, which may be infinite or NaN."""
    if not isinstance(value, float) and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63):
        mismatch(where, value, "a number")


def boolean(value: Any, where: str) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        mismatch(where, value, "true or false")


def text(pattern: str = r"[\s\S]{0,2000}", expected: str = "text of at most 2000 characters") -> Check:
    """Return a check for text that fully matches a pattern. `expected` describes the pattern in the error."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            mismatch(where, value, expected)

    return check


def one_of(*allowed: str) -> Check:
    """Return a check for one of these texts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            mismatch(where, value, f"one of {', '.join(allowed)}")

    return check


def nullable(check: Check) -> Check:
    """Return a check for null or a value that passes `check`."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, min_length: int = 0, max_length: int = 10_000) -> Check:
    """Return a check for a list whose entries pass `check`."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or not min_length <= len(value) <= max_length:
            mismatch(where, value, f"a list of {min_length} to {max_length} entries")
        for i, entry in enumerate(value):
            check(entry, f"{where}[{i}]")

    return check_list


def mapping_of(check: Check, key: Check | None = None) -> Check:
    """Return a check for an object whose values pass `check` and whose names pass `key`."""

    def check_mapping(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            mismatch(where, value, "an object")
        for name, entry in value.items():
            if key is not None:
                key(name, f"a name in {where}")
            check(entry, f"{where}.{name}")

    return check_mapping


def record(fields: Mapping[str, Check], *, optional: Collection[str] = (), more: bool = False) -> Check:
    """Return a check for an object with these fields. `more` allows other fields, which are not checked."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            mismatch(where or "the file", value, "an object")
        prefix = f"{where}." if where else ""
        for name, check_field in fields.items():
            if name in value:
                check_field(value[name], prefix + name)
            elif name not in optional:
                raise SchemaError(prefix + name, "is missing")
        if not more and (unknown := set(value) - set(fields)):
            raise SchemaError(prefix + min(unknown), "is an unknown field")

    return check
