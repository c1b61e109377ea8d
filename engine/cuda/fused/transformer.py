"""Transformers of U-Nets on rows of tokens: images stay channels last, and products add to the residual in place.

The biases of the products are added by the next norm, which reads the sum anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ...system.switches import disabled_optimizations
from .attention import FusedAttention, is_plain
from .norms import FusedGeglu, FusedGroupNorm, FusedLayerNorm, is_affine
from .pending import Pending, add_product, image_of, summed_bias, take_bias, tokens


class FusedTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to the rows of tokens."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        without = disabled_optimizations()
        self.norm1, self.norm2, self.norm3 = (FusedLayerNorm(n) for n in (block.norm1, block.norm2, block.norm3))
        self.attn1, self.attn2 = FusedAttention(block.attn1), FusedAttention(block.attn2)
        self.geglu, self.out = FusedGeglu(block.ff.net[0]), block.ff.net[2]
        self._folds, self._in_place = "folded_biases" not in without, "residual_products" not in without
        self._owns_input = False
        layers = (self.attn1.to_out, self.attn2.to_out, self.out) if self._folds else ()
        self._biases = [take_bias(layer) for layer in layers] or [None, None, None]
        self.link(None, closes=True)

    def link(self, before: Tensor | None, *, closes: bool, owns_input: bool = False) -> Tensor | None:
        """Set the biases that each norm adds.

        Args:
            before: the sum of the biases of earlier blocks that are not added yet.  # [C]
            closes: whether this block adds all biases to its output.
            owns_input: whether the block may change its input.

        Returns:
            The sum of the biases that the next block has to add, or None.
        """
        first, second, third = self._biases
        self.shift1 = summed_bias(before)
        self.shift2 = summed_bias(before, first)
        self.shift3 = summed_bias(before, first, second)
        everything = summed_bias(before, first, second, third)
        self.stored_bias = None
        if closes and everything is not None:
            self.stored_bias = summed_bias(torch.zeros_like(everything) if third is None else third)
        self._owns_input = owns_input
        return None if closes else everything

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """# [B, P, C], text [B, T, W] -> [B, P, C]"""
        assert attention_mask is None
        assert encoder_attention_mask is None
        x = hidden_states if self._owns_input or not self._in_place else hidden_states.clone()
        y, _ = self.norm1.shifted(x, self.shift1)
        x = add_product(x, self.attn1.mixed(y), self.attn1.to_out, in_place=self._in_place)
        y, _ = self.norm2.shifted(x, self.shift2)
        x = add_product(x, self.attn2.mixed(y, encoder_hidden_states), self.attn2.to_out, in_place=self._in_place)
        y, total = self.norm3.shifted(x, self.shift3, self.stored_bias)
        return add_product(x if total is None else total, self.geglu(y), self.out, in_place=self._in_place)


class FusedTransformer2D(nn.Module):
    """Group norm, projection, blocks, projection, and the residual, without a change of layout."""

    def __init__(self, transformer: Transformer2DModel) -> None:
        super().__init__()
        without = disabled_optimizations()
        self.norm = FusedGroupNorm(transformer.norm, silu=False)
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.transformer_blocks = transformer.transformer_blocks
        self._in_place = "residual_products" not in without
        self.out_bias = summed_bias(take_bias(self.proj_out)) if "folded_biases" not in without else None

    def link(self) -> None:
        """Let each block add the biases of the one before it, once all blocks are fused."""
        blocks = list(self.transformer_blocks)
        pending: Tensor | None = None
        if all(isinstance(block, FusedTransformerBlock) for block in blocks):
            for i, block in enumerate(blocks):
                pending = block.link(pending, closes=i == len(blocks) - 1, owns_input=True)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **unused: Any
    ) -> tuple[Tensor]:
        """# [B, C, H, W], text [B, T, W] -> [B, C, H, W]"""
        return (self.of_sum(Pending(hidden_states), encoder_hidden_states),)

    def of_sum(self, image: Pending, text: Tensor | None) -> Tensor:
        """Compute it for a sum that is not computed yet.  # text [B, T, W] -> [B, C, H, W]"""
        y, total = self.norm.of_sum(image, stored_bias=self.out_bias, stores=True)
        assert total is not None
        x = nn.functional.linear(tokens(y), self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            x = block(x, encoder_hidden_states=text)
        rows = add_product(tokens(total), x, self.proj_out, in_place=self._in_place)
        return image_of(rows, total)


def fused_block(block: BasicTransformerBlock) -> nn.Module | None:
    """Fuse a transformer block of Stable Diffusion's U-Nets. Return None for others."""
    plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    both = isinstance(block.attn2, nn.Module) and not hasattr(block, "fuser") and block._chunk_size is None
    if not plain or not both or not all(is_affine(n) for n in (block.norm1, block.norm2, block.norm3)):
        return None
    net = block.ff.net
    gated = len(net) == 3 and type(net[0]) is GEGLU and type(net[2]) is nn.Linear
    attentions = is_plain(block.attn1) and is_plain(block.attn2)
    crossed = not block.attn1.is_cross_attention and block.attn2.is_cross_attention
    return FusedTransformerBlock(block) if gated and attentions and crossed else None


def fused_transformer(transformer: Transformer2DModel) -> nn.Module | None:
    """Fuse the transformer of an image. Return None for other inputs."""
    if "token_transformers" in disabled_optimizations() or not transformer.is_input_continuous:
        return None
    norm, same = transformer.norm, transformer.in_channels == transformer.out_channels
    return FusedTransformer2D(transformer) if type(norm) is nn.GroupNorm and norm.affine and same else None
