"""Computes what does not depend on the sample once for a schedule, instead of at every call.

These are the keys and values of the cross-attentions, and each residual block's projections of the timestep embeddings,
for all calls in one product. They belong to a session. Modules are shared, so they read the values of the
session that calls them from a context variable. Imports torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

Precomputed = Callable[[int], Any]  # the number of a call -> a module's value
_TIMES = nn.Identity()  # stands for the embeddings among the modules of a session
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


class CachedEmbedding(TimestepEmbedding):  # type: ignore[misc]
    """The layers of the timestep embedding. They pass on what `CachedTimesUNet` returns inside of a session."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """# [N, E] -> [N, T]"""
        return sample if _has_times() else super().forward(sample, condition)


class CachedTimesUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A U-Net that computes no timestep embeddings inside of a session: its residual blocks have their projections."""

    def get_time_embed(self, sample: Tensor, timestep: Any) -> Tensor | None:
        """Return the sines of a timestep; anything inside of a session, where nothing reads them."""
        return sample.new_empty(len(sample), 1) if _has_times() else super().get_time_embed(sample, timestep)

    def get_aug_embed(self, *states: Any, **more: Any) -> Tensor | None:
        """Return the embedding of SDXL's sizes and pooled text; None inside of a session."""
        return None if _has_times() else super().get_aug_embed(*states, **more)


def cache_times(module: nn.Module) -> None:
    """Let U-Nets inside of a module use the embeddings of a session. Others keep their class."""
    blocks = (ResnetBlock2D, ResnetBlockCondNorm2D)  # that are not fused need the embedding
    for each in module.modules():
        if type(each) is not UNet2DConditionModel or type(each.time_embedding) is not TimestepEmbedding:
            continue
        if not any(isinstance(m, blocks) for m in each.modules()):
            each.__class__, each.time_embedding.__class__ = CachedTimesUNet, CachedEmbedding


def _has_times() -> bool:
    values = _CURRENT.get()
    return values is not None and _TIMES in values


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
        cast = {n: t.to(dtype) if t.is_floating_point() and n != "time_ids" else t for n, t in constants.items()}
        unet = next((m for m in module.modules() if type(m) in (UNet2DConditionModel, CachedTimesUNet)), None)
        embeddings = None if unet is None else _embeddings(unet, timesteps, cast)
        self._values: dict[nn.Module, Precomputed] = {} if embeddings is None else {_TIMES: lambda call: True}
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


def _embeddings(unet: Any, timesteps: Tensor, constants: Mapping[str, Tensor]) -> Tensor | None:
    """Return the complete embeddings of all calls, as the U-Net computes one.  # [calls, N] -> [calls, N, E]

    None for a U-Net that embeds more than the timestep and SDXL's sizes and pooled text.
    """
    more = unet.class_embedding is not None or unet.time_embed_act is not None
    if more or unet.config.addition_embed_type not in (None, "text_time"):
        return None
    calls, text, condition = len(timesteps), constants["encoder_hidden_states"], constants.get("timestep_cond")
    sines = unet.time_proj(timesteps.flatten()).to(text.dtype)
    condition = None if condition is None else condition.repeat(calls, 1)
    embeddings: Tensor = unet.time_embedding(sines, condition).unflatten(0, (calls, -1))
    added = unet.get_aug_embed(emb=embeddings, encoder_hidden_states=text, added_cond_kwargs=constants)
    return embeddings if added is None else embeddings + added
