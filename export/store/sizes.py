"""Amounts of bytes as people write them: 20GB, 500 MB, 1.5GiB. `rich.filesize` writes them."""

from __future__ import annotations

import re
from decimal import Decimal

from calotype.errors import InputError

_STEPS = list(enumerate("kmgt", start=1))
_UNITS = {"b": 1} | {f"{p}b": 1000**i for i, p in _STEPS} | {f"{p}ib": 1024**i for i, p in _STEPS}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgt]?i?b)", re.ASCII | re.IGNORECASE)


def bytes_of(said: str) -> int:
    """How many bytes "20GB" are (1000 to a step; 1024 with an i: "20GiB"). Raises `InputError`."""
    found = _AMOUNT.fullmatch(said.strip())
    unit = found and _UNITS.get(found[2].lower())
    if not found or not unit:
        raise InputError(f"{said!r} is no amount of bytes; write it as 20GB, 500MB or 1.5GiB.")
    return int(Decimal(found[1]) * unit)
