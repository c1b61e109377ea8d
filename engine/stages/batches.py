"""Split a call with more images than a plan's profile allows into batches. Each image stays that of its seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from ..plan.profile import Profile
from ..request.resolved import ResolvedRequest
from ..text.tokenizer import Tokens
from .generation import Generation

_ONE_FOR_EACH = ("prompts", "negative_prompts", "prompts_2", "negative_prompts_2", "seeds", "generators")


def parts_of(call: Generation, profile: Profile, largest: int | None = None) -> list[Generation]:
    """Return the call of each batch of at most `largest` images, with its second pass.

    The parts share the watch and the notes.
    """
    sizes = profile.batches(len(call.request.seeds), largest)
    if len(sizes) == 1 or call.request.style is not None:  # images of one style are one batch
        return [call]
    requests = list(_requests(call.request, sizes))
    seconds = [call.second and replace(call.second, request=each.second_pass()) for each in requests]
    return [replace(call, request=each, second=second) for each, second in zip(requests, seconds, strict=True)]


def _requests(request: ResolvedRequest, sizes: Sequence[int]) -> Iterator[ResolvedRequest]:
    count = len(request.seeds)
    start = 0
    for size in sizes:
        yield _of_fields(request, np.arange(start, start + size), count)
        start += size


def _part(name: str, value: Any, rows: Any, count: int) -> Any:
    """Return the rows of what a request holds for each image, for each prompt, or for each half of the guidance."""
    if isinstance(value, np.ndarray) and value.ndim > 1 and len(value) > 1:
        halves = len(value) // count
        every = value if halves else value.repeat(count // len(value), axis=0)  # one for each prompt
        return np.concatenate([every[half * count + rows] for half in range(max(halves, 1))])
    if isinstance(value, Tokens):
        halves = len(value.ids) // count
        return value.of([half * count + row for half in range(halves) for row in rows.tolist()])
    if isinstance(value, Mapping):
        return {key: _part(name, each, rows, count) for key, each in value.items()}
    if isinstance(value, tuple) and name in _ONE_FOR_EACH:
        return tuple(value[row] for row in rows) if len(value) == count else value
    if isinstance(value, tuple):
        return tuple(_of_fields(each, rows, count) if is_dataclass(each) else each for each in value)
    return _of_fields(value, rows, count) if is_dataclass(value) else value


def _of_fields(value: Any, rows: Any, count: int) -> Any:
    parts = {
        f.name: _part(f.name, old, rows, count) for f in fields(value) if (old := getattr(value, f.name)) is not None
    }
    changed = {name: part for name, part in parts.items() if part is not getattr(value, name)}
    return replace(value, **changed) if changed else value
