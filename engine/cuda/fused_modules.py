"""Replaces modules of a network by modules that call our kernels, with a rule for each type of module.

A rule replaces a module only if it supports all its settings. `fuse` counts the replaced modules. A replacement uses
the parameters of the original module, or rows of a parameter packed from them. It needs images in channels-last format
and a GPU (or Triton's interpreter). Imports torch, diffusers and triton: only the cuda backend imports this file, when
it is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from calotype.kernels.geglu import geglu
from calotype.kernels.group_norm_silu import GroupNorm, group_norm_silu
from calotype.kernels.layer_norm import layer_norm

from .fused_attention import fused_attention
from .step_cache import Precomputed, StepInvariant


class FusedGroupNorm(nn.Module):
    """Group normalization, optionally with the time embedding added before it and SiLU after it."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._groups, self._eps, self._silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """# [B, C, H, W] or [B, C, P], time [B, C] -> as x"""
        image = x if x.ndim == 4 else x[..., None]
        norm = GroupNorm(weight=self.weight, bias=self.bias, groups=self._groups, eps=self._eps, silu=self._silu)
        out, _ = group_norm_silu(image.contiguous(memory_format=torch.channels_last), norm, time=time)
        return out if x.ndim == 4 else out[..., 0]


class FusedLayerNorm(nn.Module):
    """Layer normalization."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """# [..., C] -> [..., C]"""
        return layer_norm(x.contiguous(), self.weight, self.bias, eps=self._eps)[0]

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and the sum.  # [..., C], [..., C] -> [..., C], [..., C]"""
        out, total = layer_norm(x.contiguous(), self.weight, self.bias, eps=self._eps, residual=residual.contiguous())
        assert total is not None
        return out, total


class FusedGeglu(nn.Module):
    """GEGLU: the projection, then one half times the GELU of the other."""

    def __init__(self, module: GEGLU) -> None:
        super().__init__()
        self.proj = module.proj

    def forward(self, x: Tensor) -> Tensor:
        """# [..., C] -> [..., D]"""
        return geglu(self.proj(x))


class FusedResnet(StepInvariant):
    """A residual block with both norms and SiLUs fused; the second also adds the time embedding."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedGroupNorm(block.norm1, silu=True), FusedGroupNorm(block.norm2, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.time_emb_proj = block.time_emb_proj
        self._scale = block.output_scale_factor

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        """# [B, C, H, W], [B, E] -> [B, D, H, W]"""
        assert (self.time_emb_proj is None) == (temb is None)
        time: Tensor | None = self.cached
        if time is None and temb is not None:
            time = self.projected(temb)
        h = self.conv2(self.norm2(self.conv1(self.norm1(x)), time))
        h = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        out: Tensor = h if self._scale == 1 else h / self._scale
        return out

    def precompute(self, text: Tensor, embeddings: Tensor | None) -> Precomputed | None:
        """Return the projected time embedding of each call."""
        return None if self.time_emb_proj is None or embeddings is None else self.projected(embeddings).__getitem__

    def projected(self, temb: Tensor) -> Tensor:
        """Project the time embedding that is added between the convolutions.  # [..., E] -> [..., D]"""
        added: Tensor = self.time_emb_proj(nn.functional.silu(temb))
        return added


class FusedTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; each norm is fused with the residual addition before it."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (FusedLayerNorm(n) for n in (block.norm1, block.norm2, block.norm3))
        self.attn1, self.attn2, self.ff = block.attn1, block.attn2, block.ff

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """# [B, P, C], text [B, T, W] -> [B, P, C]"""
        x = self.attn1(self.norm1(hidden_states), attention_mask=attention_mask)
        x, total = self.norm2.after(x, hidden_states)
        x = self.attn2(x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        x, total = self.norm3.after(x, total)
        out: Tensor = self.ff(x) + total
        return out


def _resnet(block: ResnetBlock2D) -> nn.Module | None:
    kinds = ("default", "group") if block.time_emb_proj is None else ("default",)  # "group": an autoencoder's, no time
    plain = block.time_embedding_norm in kinds and block.upsample is None and block.downsample is None
    silu = isinstance(block.nonlinearity, nn.SiLU) and not block.skip_time_act
    return FusedResnet(block) if plain and silu else None


def _transformer(block: BasicTransformerBlock) -> nn.Module | None:
    plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    both = isinstance(block.attn2, nn.Module) and not hasattr(block, "fuser") and block._chunk_size is None
    norms = (block.norm1, block.norm2, block.norm3)
    return FusedTransformerBlock(block) if plain and both and all(_is_affine(n) for n in norms) else None


def _is_affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.bias is not None and len(norm.normalized_shape) == 1


_RULES: Mapping[type[nn.Module], Callable[[Any], nn.Module | None]] = {
    ResnetBlock2D: _resnet,
    BasicTransformerBlock: _transformer,
    Attention: fused_attention,
    GEGLU: FusedGeglu,
    nn.LayerNorm: lambda norm: FusedLayerNorm(norm) if _is_affine(norm) else None,
    nn.GroupNorm: lambda norm: FusedGroupNorm(norm, silu=False) if norm.affine else None,
}


def fuse(module: nn.Module) -> Counter[str]:
    """Replace the modules that a rule supports, and use channels-last format. Return the count for each type."""
    counts: Counter[str] = Counter()
    _fuse_inside(module, counts)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return counts


def _fuse_inside(module: nn.Module, counts: Counter[str]) -> None:
    norm = getattr(module, "conv_norm_out", None)
    if type(norm) is nn.GroupNorm and isinstance(getattr(module, "conv_act", None), nn.SiLU):
        module.conv_norm_out, module.conv_act = FusedGroupNorm(norm, silu=True), nn.Identity()
        counts["GroupNorm"] += 1
    for name, child in list(module.named_children()):
        rule = _RULES.get(type(child))  # the exact type: a subclass may compute something else
        fused = rule(child) if rule is not None else None
        if fused is not None:
            setattr(module, name, fused)
            counts[type(child).__name__] += 1
        _fuse_inside(fused or child, counts)
