"""A U-Net's timestep embedding, for one call or for a whole schedule.

`calotype.cuda.step_cache` computes the embeddings of a schedule at once. While one is cached, the modules that compute
it do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


class FusedTimesteps(nn.Module):
    """A U-Net's embedding of the timestep and of SDXL's added conditions, for one call or for a whole schedule."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.proj, self.embedding = unet.time_proj, unet.time_embedding
        self.add_proj, self.add_embedding = (getattr(unet, n, None) for n in ("add_time_proj", "add_embedding"))
        self.cached: Tensor | None = None  # [N, E] complete embedding of the next call, see `step_cache`

    def forward(self, sines: Tensor, condition: Tensor | None = None) -> Tensor:
        """Replace the U-Net's `time_embedding`.  # [N, S], [N, G] -> [N, E]"""
        out: Tensor = self.embedding(sines, condition) if self.cached is None else self.cached
        return out

    def table(self, timesteps: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the complete embeddings of all calls.  # [calls, N] -> [calls, N, E]"""
        calls, condition = len(timesteps), constants.get("timestep_cond")
        dtype = constants["encoder_hidden_states"].dtype
        sines = self.proj(timesteps.flatten()).to(dtype)
        condition = None if condition is None else condition.repeat(calls, 1)
        embeddings: Tensor = self.embedding(sines, condition).unflatten(0, (calls, -1))
        if self.add_embedding is None:
            return embeddings
        assert self.add_proj is not None
        ids = self.add_proj(constants["time_ids"].flatten()).unflatten(0, (len(constants["time_ids"]), -1)).flatten(1)
        added: Tensor = self.add_embedding(torch.cat([constants["text_embeds"], ids], dim=-1).to(dtype))
        return embeddings + added


class _Skippable(nn.Module):
    """A module that `instead` replaces while `times` has a cached embedding."""

    def __init__(self, module: nn.Module, times: FusedTimesteps, instead: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module, self._instead = module, instead
        self._times = [times]  # in a list, so that torch does not register it as a submodule

    def forward(self, x: Tensor) -> Any:
        """Call the module, or `instead`."""
        return self.module(x) if self._times[0].cached is None else self._instead(x)


def fuse_timesteps(unet: UNet2DConditionModel) -> bool:
    """Fuse the embedding of a U-Net that embeds only the timestep, or also SDXL's sizes and pooled text.

    Returns:
        Whether the U-Net is one of these.
    """
    other = unet.class_embedding is not None or unet.time_embed_act is not None
    if other or unet.config.addition_embed_type not in (None, "text_time"):
        return False
    times = FusedTimesteps(unet)
    unet.time_embedding = times
    unet.time_proj = _Skippable(unet.time_proj, times, lambda timesteps: timesteps)
    if times.add_embedding is not None:
        unet.add_time_proj = _Skippable(unet.add_time_proj, times, lambda ids: ids)
        unet.add_embedding = _Skippable(unet.add_embedding, times, lambda _: 0.0)
    return True
