"""Networks that steer a U-Net by images of its size: ControlNets and T2I-Adapters. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...plan.controls.t2i_adapter import STATE
from .wrapper import Wrapper


class ControlNet(Wrapper):
    """A ControlNet: residuals for the U-Net from a control image. `added` are SDXL's `text_embeds` and `time_ids`."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: Tensor,
        **added: Tensor,
    ) -> tuple[Tensor, ...]:
        """# [B, 4, h, w], [B], [B, T, W], [B, 3, H, W], [B], [B, P], [B, 6] -> N x [B, C, h / level, w / level]"""
        down, middle = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            conditioning_scale=conditioning_scale[:, None, None, None],
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        return *down, middle


class ControlNetUnion(Wrapper):
    """A ControlNet-Union: one network for many types of control images, of which a call passes G with their types.

    As in diffusers, the attention between the images and the sample runs over the batch: the rows of a call see each
    other, and no row sees another image of its own.
    """

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        control_task: Tensor,
        control_type: Tensor,
        condition_scale: Tensor,
        conditioning_scale: Tensor,
        **added: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the residuals, times `conditioning_scale`.

        # [B, 4, h, w], [B], [B, T, W], [B, G, 3, H, W], [B, G, types], [B, types], [B, G], [B], [B, P], [B, 6]
        # -> N x [B, C, h / level, w / level]
        """
        net = self.model
        embedding = net.time_embedding(net.time_proj(timestep).to(sample.dtype))
        types = net.control_type_proj(control_type.flatten()).reshape(sample.shape[0], -1)
        embedding = embedding + net.control_add_embedding(types.to(sample.dtype))
        if added:
            times = net.add_time_proj(added["time_ids"].flatten()).reshape(sample.shape[0], -1)
            states = torch.cat([added["text_embeds"], times.to(sample.dtype)], dim=-1)
            embedding = embedding + net.add_embedding(states)
        x = net.conv_in(sample)
        x = x + self._conditions(x, controlnet_cond, control_task, condition_scale)
        residuals = [x]
        for block in net.down_blocks:
            text = {"encoder_hidden_states": encoder_hidden_states} if _attends(block) else {}
            x, states = block(hidden_states=x, temb=embedding, **text)
            residuals += states
        if net.mid_block is not None:
            x = net.mid_block(x, embedding, encoder_hidden_states=encoder_hidden_states)
        layers = (*net.controlnet_down_blocks, net.controlnet_mid_block)
        scale = conditioning_scale[:, None, None, None]
        return tuple(layer(each) * scale for layer, each in zip(layers, (*residuals, x), strict=True))

    def _conditions(self, x: Tensor, images: Tensor, tasks: Tensor, scale: Tensor) -> Tensor:
        """Return what the control images add to the sample.  # [B, C, h, w]"""
        net = self.model
        maps = net.controlnet_cond_embedding(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # [B, G, C, h, w]
        tokens = (maps.mean((3, 4)) + tasks @ net.task_embedding) * scale[..., None]
        tokens = torch.cat([tokens, x.mean((2, 3))[:, None]], dim=1)
        for layer in net.transformer_layes:
            tokens = tokens + attention_over_rows(layer.attn, layer.ln_1(tokens))
            tokens = tokens + layer.mlp(layer.ln_2(tokens))
        shifts = net.spatial_ch_projs(tokens[:, :-1]) * scale[..., None]
        sums: Tensor = (maps * scale[..., None, None, None] + shifts[..., None, None]).sum(1)
        return sums


def attention_over_rows(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Compute what diffusers' module computes, whose sequences are along the batch.  # [B, L, C] -> the same"""
    q, k, v = (
        part.reshape(*part.shape[:2], attention.num_heads, -1).permute(1, 2, 0, 3)  # [L, heads, B, D]
        for part in nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    out: Tensor = attention.out_proj(mixed.permute(2, 0, 1, 3).flatten(2))
    return out


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


class T2IAdapter(Wrapper):
    """A T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): features for the U-Net from an image."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, nn.AvgPool2d):
                module.ceil_mode = False  # every side is even: the same numbers, and fewer conditions in a graph

    def forward(self, adapter_image: Tensor) -> tuple[Tensor, ...]:
        """# [B, 1 or 3, H, W] -> N x [B, C, h / level, w / level]"""
        return tuple(self.model(adapter_image))


def adapter_states(inputs: Mapping[str, Tensor]) -> list[Tensor] | None:
    """Return the features of T2I-Adapters among a U-Net's inputs, anew: diffusers' U-Net empties the list."""
    return [inputs[name] for name in sorted(inputs, key=index_of) if name.startswith(STATE)] or None


def index_of(name: str) -> int:
    """Return the number at the end of an input's name; -1 without one."""
    return int(name.rpartition(".")[2]) if "." in name else -1
