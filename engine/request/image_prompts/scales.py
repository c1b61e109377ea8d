"""The strength of an IP-Adapter in each cross-attention, in the forms that diffusers takes (`set_ip_adapter_scale`).

By block: InstantStyle (Wang et al. 2024, arXiv 2404.02733). Knows the places of attentions, not networks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...errors.validation import check_float

Floats = NDArray[np.float32]
NAME = "ip_adapter_scale"
_LIMIT = 10.0


def scales_of(value: Any, layers: Sequence[str], images: Sequence[int | None]) -> list[Floats]:
    """Return the scales of each adapter.

    Args:
        value: what the caller passed: a number, or for each adapter a number, a mapping or a list; or JSON of it.
        layers: the place of each cross-attention, as "down.1.0".
        images: for each adapter the number of its images if each has a mask, else None.

    Returns:
        For each adapter [images or 1, layers].

    Raises:
        InputError: a value is not a scale, or the number of values is wrong.
    """
    value = plain_scale(value)
    several = isinstance(value, list)
    values = list(value) if several else [value] * len(images)
    if several and len(images) == 1 and len(values) != 1 and not any(isinstance(v, (Mapping, list)) for v in values):
        values = [values]  # of the only adapter: one for each layer or image
    if len(values) != len(images):
        raise InputError(
            f"pass one {NAME}, or one for each of {len(images)} IP-Adapters; got {len(values)}.",
            argument=NAME,
            got=len(values),
        )
    return [_of_adapter(each, layers, count) for each, count in zip(values, images, strict=True)]


def plain_scale(value: Any) -> Any:
    """Return a scale as numbers, lists and mappings, as a PNG keeps it. Raises `InputError` if it is none of these."""
    if isinstance(value, str):
        try:
            return plain_scale(json.loads(value))
        except (ValueError, RecursionError):
            _invalid(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(name): plain_scale(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_scale(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _invalid(value)
    return value


def _of_adapter(value: Any, layers: Sequence[str], images: int | None) -> Floats:
    if isinstance(value, Mapping):
        by_place = _by_place(value, layers, images)
        columns = [_column(by_place[place], images) for place in layers]
    elif isinstance(value, list) and images is None and len(value) == len(layers):
        columns = [_column(each, None) for each in value]
    else:
        columns = [_column(value, images)] * len(layers)
    return np.stack(columns, axis=1).astype(np.float32)


def _column(value: Any, images: int | None) -> Floats:
    """Return the scales of one layer: for each masked image, or one.  # [images or 1]"""
    count = 1 if images is None else images
    values = list(value) if isinstance(value, list) else [value] * count
    if len(values) != count or (images is None and isinstance(value, list)):
        _invalid(value, f"{images} numbers, one for each mask" if images else "one number, or with masks one for each")
    return np.array([check_float(NAME, each, _LIMIT, low=-_LIMIT) for each in values], np.float32)


def _by_place(value: Mapping[Any, Any], layers: Sequence[str], images: int | None) -> dict[str, Any]:
    """Return the value of each attention; those that the mapping leaves out are 0, as in diffusers."""
    places = list(dict.fromkeys(layers))
    scales: dict[str, Any] = dict.fromkeys(places, 0.0)
    if wrong := [key for key in value if key not in ("down", "mid", "up")]:
        _invalid(wrong[0], "the keys down, mid and up")
    for side, blocks in value.items():
        of_side = [place for place in places if place.startswith(f"{side}.")]
        indexes = list(dict.fromkeys(place.split(".")[1] for place in of_side))
        if not of_side:
            _invalid(side, f"blocks that have attentions: {', '.join(places)}")
        if side == "mid" or not isinstance(blocks, Mapping):
            blocks = {f"block_{index}": blocks for index in indexes}
        for name, numbers in blocks.items():
            inside = [place for place in of_side if f"block_{place.split('.')[1]}" == name]
            if not inside:
                _invalid(name, " or ".join(f"{side} block_{index}" for index in indexes))
            scales |= zip(inside, _of_block(numbers, f"{side} {name}", len(inside)), strict=True)
    return scales


def _of_block(value: Any, name: str, attentions: int) -> list[Any]:
    if not isinstance(value, list):
        return [value] * attentions
    values = list(value) * attentions if len(value) == 1 else list(value)
    if len(values) != attentions:
        _invalid(value, f"{attentions} numbers for {name}")
    return values


def _invalid(got: Any, expected: str = "a number, or numbers by block (down, mid, up)") -> NoReturn:
    message = f"{NAME} must be {expected}; got {got!r:.80}."
    raise InputError(message, argument=NAME, got=got, expected=expected)
