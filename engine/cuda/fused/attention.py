"""Attention with packed projections, on rows of tokens and on images.

A session computes the keys and values of its text once. Imports torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ...system.switches import disabled_optimizations
from ..attention import attend
from ..step_cache import Precomputed, StepInvariant
from .norms import FusedGroupNorm
from .pending import Pending, add_product, image_of, summed_bias, take_bias, tokens

_EXTRAS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj")


class FusedAttention(StepInvariant):
    """Attention with one product for all projections of an input: q, k and v of the image, or k and v of the text."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self._heads, self._scale, crossed = attention.heads, attention.scale, attention.is_cross_attention
        self._attend_images = _attends_images(attention)
        self._share = getattr(attention.processor, "share", None)  # of a U-Net's self-attention: Style Aligned
        self._skip = getattr(attention.processor, "skip", None)  # perturbed attention guidance
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
        out: Tensor = self.to_out(self.mixed(x, encoder_hidden_states))
        return out

    def mixed(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """Return the attention before the last projection.  # [B, P, C], text [B, T, W] -> [B, P, D]"""
        if self.to_q is None:
            parts = self.packed(x).chunk(3, dim=-1)
        else:
            parts = (self.to_q(x), *(self.cached or self.packed(text).chunk(2, dim=-1)))
        q, k, v = (p.view(*p.shape[:2], self._heads, -1).transpose(1, 2) for p in parts)  # [B, heads, P, D]
        own = v
        if self._share is not None:
            q, k, v = self._share(q, k, v)
        mixed = attend(q, k, v, scale=self._scale)
        if self._skip is not None:
            mixed = self._skip(mixed, own)
        images = None if self._attend_images is None else self._attend_images(q)
        if isinstance(images, Tensor):  # without image prompts there is nothing to add, and no kernel that adds it
            mixed = mixed + images
        return mixed.transpose(1, 2).flatten(2)


class FusedImageAttention(nn.Module):
    """Self-attention of an image with its norm before it and its residual: an autoencoder's middle."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        without = disabled_optimizations()
        self.group_norm = FusedGroupNorm(attention.group_norm, silu=False)
        attention.group_norm = None
        self.inner = FusedAttention(attention)
        folds = "folded_biases" not in without
        self.out_bias = summed_bias(take_bias(self.inner.to_out)) if folds else None
        self._in_place = "residual_products" not in without

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        """# [B, C, H, W] -> [B, C, H, W]"""
        return self.of_sum(Pending(hidden_states))

    def of_sum(self, x: Pending) -> Tensor:
        """Compute it for a sum that is not computed yet.  # -> [B, C, H, W]"""
        y, total = self.group_norm.of_sum(x, stored_bias=self.out_bias, stores=True)
        assert total is not None
        rows = add_product(tokens(total), self.inner.mixed(tokens(y)), self.inner.to_out, in_place=self._in_place)
        return image_of(rows, total)


def _packed(*layers: nn.Linear) -> nn.Linear:
    """Pack layers of the same input into one layer."""
    first, outputs = layers[0], sum(n.out_features for n in layers)
    packed = nn.Linear(first.in_features, outputs, bias=first.bias is not None, device="meta")
    packed.weight = nn.Parameter(torch.cat([n.weight for n in layers]), requires_grad=False)
    if first.bias is not None:
        packed.bias = nn.Parameter(torch.cat([n.bias for n in layers]), requires_grad=False)
    return packed


def _rows(layers: Sequence[nn.Linear]) -> Iterator[tuple[nn.Linear, int, int]]:
    start = 0
    for layer in layers:
        yield layer, start, start + layer.out_features
        start += layer.out_features


def is_plain(attention: Attention) -> bool:
    """Return whether `FusedAttention` computes all of it: on token rows, without norms or added projections."""
    return all(getattr(attention, n, None) is None for n in _EXTRAS) and _supported(attention) and not _after(attention)


def fused_attention(attention: Attention) -> nn.Module | None:
    """Fuse attention of Stable Diffusion's U-Nets and autoencoders. Return None for others."""
    if is_plain(attention):
        return FusedAttention(attention)
    alone = all(getattr(attention, n, None) is None for n in _EXTRAS if n != "group_norm")
    norm, residual = attention.group_norm, attention.residual_connection and attention.rescale_output_factor == 1
    image = type(norm) is nn.GroupNorm and norm.affine and alone and residual and not attention.is_cross_attention
    return FusedImageAttention(attention) if image and _supported(attention) else None


def _supported(attention: Attention) -> bool:
    layers = (attention.to_k, attention.to_v) if attention.is_cross_attention else _projections(attention)
    shares = hasattr(attention.processor, "share")
    usual = type(attention.processor) is AttnProcessor2_0 or shares or _attends_images(attention) is not None
    return usual and len({layer.bias is None for layer in layers}) == 1


def _attends_images(attention: Attention) -> Callable[[Tensor], Tensor | float] | None:
    """Return what adds the attention to image prompts, in a U-Net that can take them; else None."""
    method: Callable[[Tensor], Tensor | float] | None = getattr(attention.processor, "attend_images", None)
    return method


def _projections(attention: Attention) -> tuple[nn.Linear, ...]:
    return attention.to_q, attention.to_k, attention.to_v


def _after(attention: Attention) -> bool:
    return bool(attention.residual_connection or attention.rescale_output_factor != 1)
