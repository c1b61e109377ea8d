"""The table of a call's arguments: each field of `Request` carries an `Argument`.

The command line's options, the settings in a PNG, the reference page and the message for an unknown argument come from
this table. So a new argument is one field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from ...errors.schema import list_of, number

ArrayLike: TypeAlias = Any  # an array of numbers, or a tensor of torch


@dataclass(frozen=True, kw_only=True)
class Argument:
    """What the table says about one argument, besides its name, type and default.

    Attributes:
        help: one sentence, for the command line and the reference.
        details: further sentences for the reference: ranges, units, sources.
        option: the type of the command line's option; None for an argument without an option.
        shown_default: the default in words, where None stands for something.
        key: the name in a PNG; empty for an argument that is not stored.
        read: turns the text in a PNG into the value.
        required: every PNG of Calotype has it; other arguments are stored only if they differ from the default.
    """

    help: str
    details: str = ""
    option: Any = None
    shown_default: str = ""
    key: str = ""
    read: Callable[[str], Any] = str
    required: bool = False


def argument(text: str, details: str = "", *, default: Any, **more: Any) -> Any:
    """Return a dataclass field with an `Argument` as metadata. `default` is the argument's default."""
    return field(default=default, metadata={"argument": Argument(help=text, details=details, **more)})


def table(kind: Any) -> Iterator[tuple[str, Any, Argument]]:
    """Yield the name, default and `Argument` of each field of a request class."""
    for each in fields(kind):
        yield each.name, each.default, each.metadata["argument"]


def numbers_from(text: str) -> list[float]:
    """Read a list of at most 1001 numbers from JSON. Raises `ValueError`."""
    data = json.loads(text)
    list_of(number(-1e6, 1e6), max_length=1001)(data, "a setting")
    return list(data)


def truth_from(text: str) -> bool:
    """Read true or false from JSON. Raises `ValueError`."""
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def to_settings(kind: Any, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of stored arguments as texts for a PNG, by their keys."""
    texts = {}
    for name, default, about in table(kind):
        value = values.get(name)
        if about.key and value is not None and (about.required or value != default):
            texts[about.key] = value if isinstance(value, str) else json.dumps(value)
    return texts


def from_settings(kind: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments that a PNG's settings contain.

    Raises:
        KeyError: a required argument is missing; ValueError: a text is not a value of its argument.
    """
    return {
        name: about.read(settings[about.key])
        for name, _, about in table(kind)
        if about.key and (about.required or about.key in settings)
    }
