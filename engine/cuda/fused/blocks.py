"""The blocks of U-Nets and autoencoders: chains of layers that hand on sums which the next norm computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks as theirs
from torch import Tensor, nn

from ...system.switches import disabled_optimizations
from .attention import FusedAttention, FusedImageAttention
from .pending import Pending
from .resnet import FusedResnet
from .transformer import FusedTransformer2D


class _Block(nn.Module):
    """The layers of a block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets, self.attentions = block.resnets, getattr(block, "attentions", None)
        self.samplers = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None)
        self.has_cross_attention = bool(getattr(block, "has_cross_attention", False))

    def _pairs(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        attentions = [None] * len(self.resnets) if self.attentions is None else self.attentions
        yield from zip(self.resnets, attentions, strict=True)


class DownBlock(_Block):
    """A block of the way down in a U-Net."""

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        additional_residuals: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """# [B, C, H, W], [B, E], [B, T, W] -> the last state and all states [B, D, h, w]"""
        x, states = Pending(hidden_states), []
        for i, (resnet, attention) in enumerate(self._pairs()):
            x = _attended(attention, _resolved(resnet, x, temb), encoder_hidden_states, temb)
            if additional_residuals is not None and i == len(self.resnets) - 1:
                x = Pending(x.tensor(), additional_residuals)
            states.append(x)
        for sampler in self.samplers or ():
            x = Pending(sampler(x.tensor()))
            states.append(x)
        outputs = tuple(state.tensor() for state in states)
        return outputs[-1], outputs


class UpBlock(_Block):
    """A block of the way up in a U-Net, which joins the states of the way down."""

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        upsample_size: Any = None,
        **unused: Any,
    ) -> Tensor:
        """# [B, C, H, W], states [B, D, H, W], [B, E], [B, T, W] -> [B, F, h, w]"""
        x, states = Pending(hidden_states), list(res_hidden_states_tuple)
        for resnet, attention in self._pairs():
            x = _resolved(resnet, x.joined(states.pop()), temb)
            x = _attended(attention, x, encoder_hidden_states, temb)
        out = x.tensor()
        for sampler in self.samplers or ():
            out = sampler(out, upsample_size)
        return out


class MiddleBlock(_Block):
    """The block between the ways down and up, in a U-Net or an autoencoder."""

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """# [B, C, H, W], [B, E], [B, T, W] -> [B, C, H, W]"""
        x = _resolved(self.resnets[0], Pending(hidden_states), temb)
        for attention, resnet in zip(self.attentions or (), self.resnets[1:], strict=True):
            x = _resolved(resnet, _attended(attention, x, encoder_hidden_states, temb), temb)
        return x.tensor()


class AutoencoderBlock(_Block):
    """A block of an autoencoder."""

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        """# [B, C, H, W] -> [B, D, h, w]"""
        x = Pending(hidden_states)
        for resnet in self.resnets:
            x = _resolved(resnet, x, temb)
        out = x.tensor()
        for sampler in self.samplers or ():
            out = sampler(out)
        return out


def _resolved(resnet: nn.Module, x: Pending, temb: Tensor | None) -> Pending:
    """Return the output of a residual block, fused or not."""
    return resnet.of_sum(x, temb) if isinstance(resnet, FusedResnet) else Pending(resnet(x.tensor(), temb))


def _attended(module: nn.Module | None, x: Pending, text: Tensor | None, temb: Tensor | None) -> Pending:
    """Return the output of a block's attention, fused or not; x if there is none."""
    if module is None:
        return x
    if isinstance(module, FusedTransformer2D):
        return Pending(module.of_sum(x, text))
    if isinstance(module, FusedImageAttention):
        return Pending(module.of_sum(x))
    if isinstance(module, Transformer2DModel):
        return Pending(module(x.tensor(), encoder_hidden_states=text, return_dict=False)[0])
    return Pending(module(x.tensor(), temb=temb))


_BLOCKS: dict[type[nn.Module], type[_Block]] = {
    theirs.CrossAttnDownBlock2D: DownBlock,
    theirs.DownBlock2D: DownBlock,
    theirs.CrossAttnUpBlock2D: UpBlock,
    theirs.UpBlock2D: UpBlock,
    theirs.UNetMidBlock2DCrossAttn: MiddleBlock,
    theirs.UNetMidBlock2D: MiddleBlock,
    theirs.DownEncoderBlock2D: AutoencoderBlock,
    theirs.UpDecoderBlock2D: AutoencoderBlock,
}
_ATTENTIONS = (Transformer2DModel, Attention, FusedTransformer2D, FusedImageAttention, FusedAttention)


def fused_block_of(block: nn.Module) -> nn.Module | None:
    """Replace a block of a U-Net or an autoencoder. Return None for a block with other layers."""
    attentions = [a for a in getattr(block, "attentions", None) or () if a is not None]
    steered = any(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))  # FreeU
    plain = all(isinstance(each, _ATTENTIONS) for each in attentions) and not steered
    return _BLOCKS[type(block)](block) if plain and "deferred_sums" not in disabled_optimizations() else None


BLOCK_TYPES = tuple(_BLOCKS)
