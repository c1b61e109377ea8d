"""`--prompts FILE`: a prompt on each line, or a JSON object with the arguments of one call.

Knows the names of arguments only; a call checks their values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

Line = tuple[str, dict[str, Any]]  # the place, for errors, and the arguments

_JSON_LINES = (".jsonl", ".ndjson")
_LARGEST_BYTES = 16 << 20


def read_prompts(path: Path) -> list[Line]:
    """Return the arguments of each call, with "FILE, line N" for errors. Skips empty lines.

    A line that starts with `{"` is JSON, as is every line of a .jsonl file. Raises `InputError`.
    """
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        if path.stat().st_size > _LARGEST_BYTES:
            raise OSError(f"it has more than {_LARGEST_BYTES >> 20} MB")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeError) as failed:
        message = f"cannot read the prompts in {path}: {getattr(failed, 'strerror', None) or failed}."
        raise InputError(message, argument="prompts", got=str(path)) from None
    places = [(f"{path}, line {n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    if not places:
        raise InputError(f"{path} has no prompts. Write one on each line.", argument="prompts", got=str(path))
    as_json = path.suffix.lower() in _JSON_LINES
    return [
        (place, _object(place, line) if as_json or line.startswith('{"') else {"prompt": line})
        for place, line in places
    ]


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as broken:
        reason = broken.msg if isinstance(broken, json.JSONDecodeError) else "it is nested too deeply"
        raise InputError(f"{place} is not JSON: {reason}.", argument="prompts", got=line[:80]) from None
    if not isinstance(data, dict):
        message = f'{place} is not an object, such as {{"prompt": "a red ring", "seed": 1}}.'
        raise InputError(message, argument="prompts", got=line[:80])
    if "output_type" in data:
        raise InputError(f"{place}: output_type has no place here: images are written.", argument="output_type")
    return data
