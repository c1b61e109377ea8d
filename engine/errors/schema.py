"""Checks for plain data from JSON: types, ranges and structure. The error names the field.

A check is a function of a value and of the field's path ("profile.multiple") that returns nothing or raises
`SchemaError`. Checks combine: `list_of(integer(1, 9))`. Knows nothing of any file's format.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

Check = Callable[[Any, str], None]


class SchemaError(ValueError):
    """A field is missing, or holds what it may not hold."""


def mismatch(where: str, got: Any, expected: str) -> NoReturn:
    """Raise the `SchemaError` of a field."""
    raise SchemaError(f"{where} is {reprlib.repr(got)}; expected {expected}")


def integer(low: int, high: int) -> Check:
    """An integer in a range. True and false are not integers."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            mismatch(where, value, f"an integer from {low} to {high}")

    return check


def number(low: float, high: float) -> Check:
    """A finite number in a range."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            mismatch(where, value, f"a number from {low:g} to {high:g}")

    return check


def figure(value: Any, where: str) -> None:
    """A measured number, which may be infinite or not a number."""
    if not isinstance(value, float) and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63):
        mismatch(where, value, "a number")


def boolean(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        mismatch(where, value, "true or false")


def text(pattern: str = r"[\s\S]{0,2000}", expected: str = "text of at most 2000 characters") -> Check:
    """Text that matches a pattern from end to end; `expected` says in words what matches."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            mismatch(where, value, expected)

    return check


def one_of(*allowed: str) -> Check:
    """One of these texts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            mismatch(where, value, f"one of {', '.join(allowed)}")

    return check


def nullable(check: Check) -> Check:
    """Null, or what passes the check."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, least: int = 0, most: int = 10_000) -> Check:
    """A list whose entries pass the check."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            mismatch(where, value, f"a list of {least} to {most} entries")
        for i, entry in enumerate(value):
            check(entry, f"{where}[{i}]")

    return check_list


def mapping_of(check: Check, key: Check | None = None, *, least: int = 0) -> Check:
    """An object whose values pass the check, and whose names pass `key`."""

    def check_mapping(value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) < least:
            mismatch(where, value, "an object" if not least else f"an object of at least {least} entries")
        for name, entry in value.items():
            if key is not None:
                key(name, f"a name in {where}")
            check(entry, f"{where}.{name}")

    return check_mapping


def record(fields: Mapping[str, Check], *, optional: Collection[str] = (), more: bool = False) -> Check:
    """An object with these fields. `more` allows others beside them, unchecked."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            mismatch(where or "the file", value, "an object")
        prefix = f"{where}." if where else ""
        for name, check_field in fields.items():
            if name in value:
                check_field(value[name], prefix + name)
            elif name not in optional:
                raise SchemaError(f"{prefix}{name} is missing")
        unknown = set() if more else set(value) - set(fields)
        if unknown:
            raise SchemaError(f"{prefix}{min(unknown)} is a field that is not known")

    return check
