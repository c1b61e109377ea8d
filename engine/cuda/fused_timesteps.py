"""A U-Net's embedding of the timestep as a module of ours, which can be of one call or of a whole schedule.

`calotype.cuda.step_cache` computes the schedule's at once; while it is kept, the modules that made it have no work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


class FusedTimesteps(nn.Module):
    """A U-Net's embedding of the timestep and of what SDXL adds to it, of one call or of a whole schedule."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.proj, self.embedding = unet.time_proj, unet.time_embedding
        self.add_proj, self.add_embedding = (getattr(unet, n, None) for n in ("add_time_proj", "add_embedding"))
        self.kept: Tensor | None = None  # [N, E] of the call that is next, all in it; see `hoisted`

    def forward(self, sines: Tensor, condition: Tensor | None = None) -> Tensor:
        """In place of the U-Net's `time_embedding`.  # [N, S], [N, G] -> [N, E]"""
        out: Tensor = self.embedding(sines, condition) if self.kept is None else self.kept
        return out

    def table(self, timesteps: Tensor, steering: Mapping[str, Tensor]) -> Tensor:
        """The embeddings of every call, with what is added to them.  # [calls, N] -> [calls, N, E]"""
        calls, condition = len(timesteps), steering.get("timestep_cond")
        dtype = steering["encoder_hidden_states"].dtype
        sines = self.proj(timesteps.flatten()).to(dtype)
        condition = None if condition is None else condition.repeat(calls, 1)
        found: Tensor = self.embedding(sines, condition).unflatten(0, (calls, -1))
        if self.add_embedding is None:
            return found
        assert self.add_proj is not None
        ids = self.add_proj(steering["time_ids"].flatten()).unflatten(0, (len(steering["time_ids"]), -1)).flatten(1)
        added: Tensor = self.add_embedding(torch.cat([steering["text_embeds"], ids], dim=-1).to(dtype))
        return found + added


class _Spared(nn.Module):
    """A module that has no work while `times` has what it is for."""

    def __init__(self, module: nn.Module, times: FusedTimesteps, instead: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module, self._instead = module, instead
        self._times = [times]  # in a list, so that it is no part of this module

    def forward(self, x: Tensor) -> Any:
        """As the module, or as `instead`."""
        return self.module(x) if self._times[0].kept is None else self._instead(x)


def fuse_timesteps(unet: UNet2DConditionModel) -> bool:
    """Of Stable Diffusion's U-Nets: the timestep, alone or with SDXL's sizes and pooled text."""
    other = unet.class_embedding is not None or unet.time_embed_act is not None
    if other or unet.config.addition_embed_type not in (None, "text_time"):
        return False
    times = FusedTimesteps(unet)
    unet.time_embedding = times
    unet.time_proj = _Spared(unet.time_proj, times, lambda timesteps: timesteps)
    if times.add_embedding is not None:
        unet.add_time_proj = _Spared(unet.add_time_proj, times, lambda ids: ids)
        unet.add_embedding = _Spared(unet.add_embedding, times, lambda _: 0.0)
    return True
