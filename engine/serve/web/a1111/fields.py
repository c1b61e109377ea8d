"""The fields of a request, with AUTOMATIC1111's habit of taking numbers as texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....errors import InputError

_NUMBER_LENGTH = 40


class Fields:
    """The fields of a JSON object. Each method returns the default for a field that is missing or null.

    All of them raise `InputError` for a value of another type.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise _invalid(name, value, "a text")
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """Return a finite number."""
        value = self.values.get(name)
        if value is None:
            return default
        number = math.nan
        if not isinstance(value, bool) and isinstance(value, (int, float, str)) and len(str(value)) <= _NUMBER_LENGTH:
            try:
                number = float(value)
            except ValueError:
                number = math.nan
        if not math.isfinite(number):
            raise _invalid(name, value, "a number")
        return number

    def integer(self, name: str, default: int) -> int:
        """Return a whole number. A large one, as a seed, keeps all its digits."""
        value = self.values.get(name)
        if isinstance(value, str) and len(value) <= _NUMBER_LENGTH and value.strip().lstrip("-").isdecimal():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        number = self.number(name, default)
        if number != int(number):
            raise _invalid(name, value, "a whole number")
        return int(number)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a truth value; numbers and texts count as in JSON of web forms."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value.lower() in ("true", "1", "yes", "on")
        return bool(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object; an empty one by default."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise _invalid(name, value, "an object")
        return value or {}

    def items(self, name: str) -> list[Any]:
        """Return a list; an empty one by default."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise _invalid(name, value, "a list")
        return value or []


def _invalid(name: str, value: Any, expected: str) -> InputError:
    message = f"{name} is {value!r:.80}; expected {expected}."
    return InputError(message, argument=name, expected=expected)
