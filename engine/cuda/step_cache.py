"""Computes what does not depend on the sample once for a schedule, instead of at every call.

These are the keys and values of the cross-attentions, the timestep embeddings of all calls in one product, and each
residual block's projection of them. They belong to a session. Modules are shared, so they read the values of the
session that calls them from a context variable. Imports torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

Precomputed = Callable[[int], Any]  # the number of a call -> a module's value
_CURRENT: ContextVar[Mapping[nn.Module, Any] | None] = ContextVar("step_values", default=None)


class StepInvariant(nn.Module):
    """A module that computes something that does not depend on the sample."""

    @property
    def cached(self) -> Any:
        """What the running session has computed for this call; None outside of a session."""
        values = _CURRENT.get()
        return None if values is None else values.get(self)

    def precompute(self, text: Tensor, embeddings: Tensor | None) -> Precomputed | None:
        """Return the values of all calls, or None if there are none.  # [N, T, W], [calls, N, E]"""
        raise NotImplementedError


class StepValues:
    """The values of a schedule. Modules that are not fused compute their own at every call, as usual."""

    def __init__(
        self, module: nn.Module, timesteps: Tensor, constants: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        """Compute them.

        Args:
            module: the denoiser.
            timesteps: float32.  # [calls, N]
            constants: the inputs that are the same at every call.
            dtype: the type to compute in.
        """
        cast = {n: t.to(dtype) if n != "time_ids" else t for n, t in constants.items()}
        times = next((m for m in module.modules() if isinstance(m, FusedTimesteps)), None)
        embeddings = None if times is None else times.embeddings(timesteps, cast)  # [calls, N, E]
        self._values: dict[nn.Module, Precomputed] = {}
        for each in module.modules():
            if isinstance(each, StepInvariant):
                values = each.precompute(cast["encoder_hidden_states"], embeddings)
                if values is not None:
                    self._values[each] = values

    @contextmanager
    def at(self, call: int) -> Iterator[None]:
        """Use the values of a call inside the block."""
        token = _CURRENT.set({module: value(call) for module, value in self._values.items()})
        try:
            yield
        finally:
            _CURRENT.reset(token)


class FusedTimesteps(StepInvariant):
    """A U-Net's embedding of the timestep and of SDXL's added conditions, for one call or for a whole schedule."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.proj, self.embedding = unet.time_proj, unet.time_embedding
        self.add_proj, self.add_embedding = (getattr(unet, n, None) for n in ("add_time_proj", "add_embedding"))

    def forward(self, sines: Tensor, condition: Tensor | None = None) -> Tensor:
        """Replace the U-Net's `time_embedding`.  # [N, S], [N, G] -> [N, E]"""
        cached: Tensor | None = self.cached
        out: Tensor = self.embedding(sines, condition) if cached is None else cached
        return out

    def precompute(self, text: Tensor, embeddings: Tensor | None) -> Precomputed | None:
        """Return the complete embedding of each call."""
        return None if embeddings is None else embeddings.__getitem__

    def embeddings(self, timesteps: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
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
    """A module that `instead` replaces while the session has a complete embedding."""

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
