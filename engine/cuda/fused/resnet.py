"""Residual blocks: norms with their SiLUs, additions and biases fused, and shortcuts as products."""

from __future__ import annotations

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ...system.switches import disabled_optimizations
from ..step_cache import Precomputed, StepInvariant
from .norms import FusedGroupNorm
from .pending import Pending, add_product, channels_last, summed_bias, take_bias, tokens


class FusedResnet(StepInvariant):
    """A residual block whose second norm adds the time embedding, and whose output may be a sum for the next norm.

    The bias of the first convolution is added to the time embedding's, or by the second norm. The biases of the second
    convolution and of the shortcut are part of the sum.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        without = disabled_optimizations()
        self.norm1, self.norm2 = FusedGroupNorm(block.norm1, silu=True), FusedGroupNorm(block.norm2, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.time_emb_proj = block.time_emb_proj
        self._scale, self._in_place = block.output_scale_factor, "residual_products" not in without
        self.middle_bias = self.out_bias = None
        if "folded_biases" not in without:
            middle = take_bias(self.conv1)
            if self.time_emb_proj is None:
                self.middle_bias = summed_bias(middle)
            else:
                self.time_emb_proj.bias = summed_bias(middle, self.time_emb_proj.bias)
            self.out_bias = summed_bias(take_bias(self.conv2), take_bias(self.conv_shortcut))

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        """# [B, C, H, W], [B, E] -> [B, D, H, W]"""
        return self.of_sum(Pending(x), temb).tensor()

    def of_sum(self, x: Pending, temb: Tensor | None) -> Pending:
        """Compute it for a sum that is not computed yet; the result is one as well.  # time embedding [B, E]"""
        assert (self.time_emb_proj is None) == (temb is None)
        time: Tensor | None = self.cached
        if time is None:
            time = self.middle_bias if temb is None else self.projected(temb)
        y, _ = self.norm1.of_sum(x)
        h = self.conv2(self.norm2(self.conv1(y), time))
        before = x.tensor()
        if self.conv_shortcut is None:
            out = Pending(h, before, self.out_bias)
        elif self._in_place and self.conv_shortcut.bias is None:
            h = channels_last(h)
            add_product(tokens(h), tokens(before), self.conv_shortcut, in_place=True)
            out = Pending(h, None, self.out_bias)
        else:
            out = Pending(h, self.conv_shortcut(before), self.out_bias)
        return out if self._scale == 1 else Pending(out.tensor() / self._scale)

    def precompute(self, text: Tensor, embeddings: Tensor | None) -> Precomputed | None:
        """Return the projected time embedding of each call."""
        return None if self.time_emb_proj is None or embeddings is None else self.projected(embeddings).__getitem__

    def projected(self, temb: Tensor) -> Tensor:
        """Project the time embedding that is added between the convolutions.  # [..., E] -> [..., D]"""
        added: Tensor = self.time_emb_proj(nn.functional.silu(temb))
        return added


def fused_resnet(block: ResnetBlock2D) -> nn.Module | None:
    """Fuse a residual block without resampling inside. Return None for others."""
    kinds = ("default", "group") if block.time_emb_proj is None else ("default",)  # "group": an autoencoder's, no time
    plain = block.time_embedding_norm in kinds and block.upsample is None and block.downsample is None
    silu = isinstance(block.nonlinearity, nn.SiLU) and not block.skip_time_act
    shortcut = block.conv_shortcut is None or block.conv_shortcut.kernel_size == (1, 1)
    return FusedResnet(block) if plain and silu and shortcut else None
