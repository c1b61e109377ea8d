"""Amounts of bytes as people write and read them: 20GB, 500 MB, 1.5GiB."""

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


def amount(size_bytes: int) -> str:
    """For people, three digits: 3.42 MB."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            size = size_bytes / factor
            return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"
    return f"{size_bytes} B"
