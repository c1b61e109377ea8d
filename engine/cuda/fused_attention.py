"""Attention with packed projections; a session computes the keys and values of its text once.

Imports torch and diffusers. Used by `calotype.cuda.fused_modules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from .attention import attend
from .step_cache import Precomputed, StepInvariant


class FusedAttention(StepInvariant):
    """Attention with one product for all projections of an input: q, k and v of the image, or k and v of the text."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._heads, self._scale, crossed = attention.heads, attention.scale, attention.is_cross_attention
        self.to_q = attention.to_q if crossed else None
        layers = [*([] if crossed else [attention.to_q]), attention.to_k, attention.to_v]
        self.packed = _packed(*layers)
        self.rows = list(_rows(layers))  # of each layer's weight in it
        for layer in layers:
            layer.weight = layer.bias = None  # the packed layer has it now
        self.to_out = attention.to_out[0]

    def precompute(self, text: Tensor, embeddings: Tensor | None) -> Precomputed | None:
        """Return the text's keys and values for every call."""
        if self.to_q is None:
            return None
        keys_and_values = self.packed(text).chunk(2, dim=-1)
        return lambda call: keys_and_values

    def forward(
        self, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """# [B, P, C], text [B, T, W] -> [B, P, C]"""
        assert attention_mask is None
        if self.to_q is None:
            parts = self.packed(x).chunk(3, dim=-1)
        else:
            parts = (self.to_q(x), *(self.cached or self.packed(encoder_hidden_states).chunk(2, dim=-1)))
        q, k, v = (p.view(*p.shape[:2], self._heads, -1).transpose(1, 2) for p in parts)  # [B, heads, P, D]
        mixed = attend(q, k, v, scale=self._scale)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


def _packed(*layers: nn.Linear) -> nn.Linear:
    """Pack layers of the same input into one layer."""
    first = layers[0]
    packed = nn.Linear(first.in_features, sum(n.out_features for n in layers), bias=first.bias is not None)
    packed.weight = nn.Parameter(torch.cat([n.weight for n in layers]), requires_grad=False)
    if first.bias is not None:
        packed.bias = nn.Parameter(torch.cat([n.bias for n in layers]), requires_grad=False)
    return packed


def _rows(layers: Sequence[nn.Linear]) -> Iterator[tuple[nn.Linear, int, int]]:
    start = 0
    for layer in layers:
        yield layer, start, start + layer.out_features
        start += layer.out_features


def fused_attention(attention: Attention) -> nn.Module | None:
    """Fuse attention of Stable Diffusion's U-Nets: on token rows, without norms or added projections. Else None."""
    extras = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj")
    plain = type(attention.processor) is AttnProcessor2_0 and all(getattr(attention, n, None) is None for n in extras)
    after = attention.residual_connection or attention.rescale_output_factor != 1
    same = len({layer.bias is None for layer in (attention.to_k, attention.to_v)}) == 1
    return FusedAttention(attention) if plain and same and not after else None
