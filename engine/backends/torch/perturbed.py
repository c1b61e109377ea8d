"""Self-attention that is replaced by the identity in some rows (PAG: Ahn et al. 2024, arXiv 2403.17377)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from ...plan.image_prompts.layers import SKIP

_CURRENT: ContextVar[Mapping[str, Tensor]] = ContextVar("attention_skips", default={})  # noqa: B039  # never changed


@contextmanager
def attention_skips(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Skip attention inside the block, where the inputs of a U-Net say so."""
    token = _CURRENT.set({name: rows for name, rows in inputs.items() if name.startswith(SKIP)})
    try:
        yield
    finally:
        _CURRENT.reset(token)


def skips(name: str) -> bool:
    """Return whether the input `name` is there."""
    return name in _CURRENT.get()


def skipped(name: str, mixed: Tensor, values: Tensor) -> Tensor:
    """Return the values themselves in rows whose input `name` is 1, and their mix by attention in the others.

    # 2 x [B, heads, P, D] -> the same
    """
    rows = _CURRENT.get().get(name)
    return mixed if rows is None else mixed + (values - mixed) * rows[:, None, None, None]
