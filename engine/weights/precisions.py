"""The precision in which each component computes, as a caller requests it: one for all, or one for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..errors.validation import nearest

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
VARIABLE = "CALOTYPE_PRECISION"  # the only precision besides fp32 that "auto" may take
_EXPECTED = f"one of {', '.join(PRECISIONS)}, or one for each component: {{'unet': 'bf16', 'vae_decoder': 'fp32'}}"
_HALF = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """A precision for each component: of `PRECISIONS`.

    Attributes:
        default: that of components which are not listed.
        components: those of listed components, by name.
        checks_names: whether a name that the model lacks is an error.
    """

    default: str = "auto"
    components: Mapping[str, str] = field(default_factory=dict)
    checks_names: bool = True

    def of(self, component: str) -> str:
        """Return the precision of a component."""
        return self.components.get(component, self.default)

    @property
    def requested(self) -> frozenset[str]:
        """All precisions that a caller requested by name."""
        return frozenset({self.default, *self.components.values()}) - {"auto"}

    def check_components(self, known: Iterable[str]) -> None:
        """Raise `InputError` for a component that the model lacks."""
        names = list(known)
        for name in self.components if self.checks_names else ():
            if name not in names:
                message = f"precision names {name!r:.80}, which the model lacks. {nearest(name, names)}"
                raise InputError(message, argument="precision", got=name, expected=", ".join(names))


def parse_precision(value: Any) -> Precisions:
    """Return the precisions in "bf16", "unet=bf16,vae_decoder=fp32", or a mapping. Raises `InputError`."""
    if isinstance(value, Precisions):
        return value
    if isinstance(value, str) and "=" in value:
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        text, value = value, {name.strip(): precision.strip() for name, _, precision in pairs}
        if len(value) < len(pairs):
            message = f"precision names a component twice: {text!r:.80}. Name each once."
            raise InputError(message, argument="precision", got=text)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not name:
                raise InputError(
                    f"precision must be {_EXPECTED}; got the component {name!r:.80}.", argument="precision", got=name
                )
        return Precisions(components={name: _checked(each, f" for {name}") for name, each in value.items()})
    return Precisions(default=_checked(value, ""))


def precision_of_auto() -> str:
    """Return the precision that CALOTYPE_PRECISION allows "auto" besides fp32: "auto" if the variable is not set.

    Raises `InputError` for another value than "auto", "fp32", "bf16" and "fp16".
    """
    value, known = os.environ.get(VARIABLE) or "auto", PRECISIONS[:-1]
    if value not in known:
        message = f"{VARIABLE} must be one of {', '.join(known)}; got {value!r:.80}."
        raise InputError(message, argument=VARIABLE, got=value[:80], expected=", ".join(known))
    return value


def _checked(value: Any, where: str) -> str:
    if isinstance(value, str) and value in PRECISIONS:
        return value
    name = str(value).removeprefix("torch.")
    fix = f" Use {_HALF[name]!r}." if name in _HALF else ""
    message = f"precision{where} must be {_EXPECTED}; got {value!r:.80}.{fix}"
    raise InputError(message, argument="precision", got=repr(value)[:80], expected=", ".join(PRECISIONS))
