"""Attention with its projections packed, and the keys and values of a text that does not change.

Imports torch and diffusers; a part of `calotype.cuda.fused_modules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from .attention import attend


class FusedAttention(nn.Module):
    """Attention whose projections of one input are one product: q, k and v of the picture, or k and v of the text."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._heads, self._scale, crossed = attention.heads, attention.scale, attention.is_cross_attention
        self.to_q = attention.to_q if crossed else None
        layers = [*([] if crossed else [attention.to_q]), attention.to_k, attention.to_v]
        self.packed = _packed(*layers)
        self.rows = list(_rows(layers))  # where each layer's weight lies in it
        for layer in layers:
            layer.weight = layer.bias = None  # it is in the other one now
        self.to_out = attention.to_out[0]
        self.kept: tuple[Tensor, ...] | None = None  # keys and values of a text that does not change, see `remembered`

    def of_text(self, text: Tensor) -> tuple[Tensor, ...]:
        """Its keys and values.  # [B, T, W] -> 2 x [B, T, C]"""
        keys, values = self.packed(text).chunk(2, dim=-1)
        return keys, values

    def forward(
        self, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """# [B, P, C], text [B, T, W] -> [B, P, C]"""
        assert attention_mask is None
        if self.to_q is None:
            parts = self.packed(x).chunk(3, dim=-1)
        elif self.kept is not None:
            parts = (self.to_q(x), *self.kept)
        else:
            assert encoder_hidden_states is not None
            parts = (self.to_q(x), *self.of_text(encoder_hidden_states))
        q, k, v = (p.view(*p.shape[:2], self._heads, -1).transpose(1, 2) for p in parts)  # [B, heads, P, D]
        mixed = attend(q, k, v, scale=self._scale)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


def _packed(*layers: nn.Linear) -> nn.Linear:
    """Layers of one input, as one."""
    first = layers[0]
    made = nn.Linear(first.in_features, sum(n.out_features for n in layers), bias=first.bias is not None)
    made.weight = nn.Parameter(torch.cat([n.weight for n in layers]), requires_grad=False)
    if first.bias is not None:
        made.bias = nn.Parameter(torch.cat([n.bias for n in layers]), requires_grad=False)
    return made


def _rows(layers: Sequence[nn.Linear]) -> Iterator[tuple[nn.Linear, int, int]]:
    start = 0
    for layer in layers:
        yield layer, start, start + layer.out_features
        start += layer.out_features


def fused_attention(attention: Attention) -> nn.Module | None:
    """Attention as Stable Diffusion's U-Nets have it: over rows, with nothing but projections about it."""
    about = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj")
    plain = type(attention.processor) is AttnProcessor2_0 and all(getattr(attention, n, None) is None for n in about)
    after = attention.residual_connection or attention.rescale_output_factor != 1
    same = len({layer.bias is None for layer in (attention.to_k, attention.to_v)}) == 1
    return FusedAttention(attention) if plain and same and not after else None


@contextmanager
def remembered(module: nn.Module, text: Tensor) -> Iterator[None]:
    """Inside, every attention in `module` to text has the keys and values of this text, computed once for all calls.

    One thread at a time may be inside. What was not fused computes its own at every call, as it would.
    """
    to_text = [m for m in module.modules() if isinstance(m, FusedAttention) and m.to_q is not None]
    try:
        for attention in to_text:
            attention.kept = attention.of_text(text)
        yield
    finally:
        for attention in to_text:
            attention.kept = None
