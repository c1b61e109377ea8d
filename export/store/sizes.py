"""Parse amounts of bytes: 20GB, 500 MB, 1.5GiB. (`rich.filesize` formats them.)"""

from __future__ import annotations

import re
from decimal import Decimal

from calotype.errors import InputError

_STEPS = list(enumerate("kmgt", start=1))
_UNITS = {"b": 1} | {f"{p}b": 1000**i for i, p in _STEPS} | {f"{p}ib": 1024**i for i, p in _STEPS}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgt]?i?b)", re.ASCII | re.IGNORECASE)


def bytes_of(text: str) -> int:
    """Return the bytes of an amount: "20GB" is 20 * 1000**3, "20GiB" is 20 * 1024**3. Raises `InputError`."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit:
        raise InputError(f"{text!r} is not an amount of bytes; expected a form such as 20GB, 500MB or 1.5GiB.")
    return int(Decimal(match[1]) * unit)
