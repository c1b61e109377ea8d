"""Self-attention of a U-Net that inputs change: shared over a batch, or skipped in some rows.

Style Aligned (Hertz et al. 2023, arXiv 2312.02133): every row takes the statistics of the queries and keys of its
reference row, and attends to its own positions and to those of the reference. A row that is its own reference attends
to each position twice, which is plain attention. Perturbed attention guidance (Ahn et al. 2024, arXiv 2403.17377):
rows that skip attention keep their values. Imports torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ...plan.image_prompts.layers import SKIP
from ...plan.image_prompts.perturbed import skip_name
from ...plan.image_prompts.style import STYLE, no_style_reason
from .image_prompts import is_plain

_EPSILON = 1e-5
_STYLE_ROWS: ContextVar[Tensor | None] = ContextVar("style_rows", default=None)
_SKIPS: ContextVar[Mapping[str, Tensor] | None] = ContextVar("attention_skips", default=None)


@contextmanager
def style_rows(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Share the self-attention inside the block, if the inputs of a U-Net say with which rows."""
    offset = inputs.get(STYLE)
    token = _STYLE_ROWS.set(None if offset is None else _rows(offset))
    try:
        yield
    finally:
        _STYLE_ROWS.reset(token)


@contextmanager
def attention_skips(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Skip self-attention inside the block, where the inputs of a U-Net say so."""
    token = _SKIPS.set({name: rows for name, rows in inputs.items() if name.startswith(SKIP)})
    try:
        yield
    finally:
        _SKIPS.reset(token)


def _rows(offset: Tensor) -> Tensor:
    """Return the row of each row's reference, inside of the batch whatever the offsets are.  # [B] int64 -> [B]"""
    own = torch.arange(offset.shape[0], device=offset.device)
    return torch.minimum(torch.maximum(own + offset, own[:1]), own[-1:])


class SharedAttention(AttnProcessor2_0):  # type: ignore[misc]  # diffusers is untyped
    """The processor of one self-attention: the usual one where no input couples rows or skips it."""

    def __init__(self, name: str) -> None:
        """`name` is the attention's name in the U-Net."""
        super().__init__()
        self._skip = skip_name(name)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Attend to the row's own positions, and to those of its reference.  # [B, P, C] -> [B, P, C]"""
        usual = _STYLE_ROWS.get() is None and self._skip not in (_SKIPS.get() or {})
        if usual or encoder_hidden_states is not None:
            plain: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, **more)
            return plain
        parts: tuple[Tensor, ...] = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        q, k, v = (p.view(*p.shape[:2], attn.heads, -1).transpose(1, 2) for p in parts)  # [B, heads, P, D]
        mixed = self.skip(nn.functional.scaled_dot_product_attention(*self.share(q, k, v)), v)
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out

    def skip(self, mixed: Tensor, values: Tensor) -> Tensor:
        """Return the values themselves in rows whose input is 1, and their mix by attention in the others.

        # 2 x [B, heads, P, D] -> the same
        """
        rows = (_SKIPS.get() or {}).get(self._skip)
        return mixed if rows is None else mixed + (values - mixed) * rows[:, None, None, None]

    def share(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys with the reference's statistics, and its keys and values after the row's own.

        # 3 x [B, heads, P, D] -> [B, heads, P, D], 2 x [B, heads, 2P, D]
        """
        rows = _STYLE_ROWS.get()
        if rows is None:
            return q, k, v
        q, k = _with_statistics(q, rows), _with_statistics(k, rows)
        k, v = (torch.cat([each, each.index_select(0, rows)], dim=2) for each in (k, v))
        return q, k, v


def _with_statistics(x: Tensor, rows: Tensor) -> Tensor:
    """Give each channel the mean and the deviation of the reference's: adaptive instance normalization.

    (Huang and Belongie 2017, arXiv 1703.06868.) The variance has n - 1 in its denominator.  # [B, heads, P, D]
    """
    mean = x.mean(2, keepdim=True)
    centered = x - mean
    # A sum over all positions would overflow in fp16, and a single position has no n - 1.
    count = torch.ones_like(x[:1, :1, :, :1]).sum(2, keepdim=True)
    variance = centered.square().mean(2, keepdim=True) * (1 + 1 / (count - 1).clamp(min=1))
    deviation = (variance + _EPSILON).sqrt()
    return centered / deviation * deviation.index_select(0, rows) + mean.index_select(0, rows)


def take_self_attention(unet: Any) -> None:
    """Prepare the self-attentions of a U-Net for these inputs, if its kind can take them."""
    if no_style_reason(unet.config) is not None:
        return
    for name, attention in unet.named_modules():
        if name.endswith(".attn1") and is_plain(attention) and not attention.is_cross_attention:
            attention.processor = SharedAttention(name)
