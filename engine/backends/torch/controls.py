"""Networks that steer a U-Net by images of its size: ControlNets and T2I-Adapters. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
