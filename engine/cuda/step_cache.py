"""Computes what depends only on the text and the timestep once for a schedule, instead of at every call.

These are the keys and values of the cross-attentions, the timestep embeddings of all calls in one product, and each
residual block's projection of them, a table of [calls, N, C] each. Imports torch and diffusers, and uses the modules of
`fused_modules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .fused_attention import cached_text_projections
from .fused_modules import FusedResnet
from .fused_timesteps import FusedTimesteps


@contextmanager
def step_invariants(
    module: nn.Module, timesteps: Tensor, constants: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[Callable[[int], None]]:
    """Precompute the step-invariant values of a schedule for the calls of `module` inside the block.

    Only one thread may be inside. Modules that are not fused compute their own values at every call, as usual.

    Args:
        module: the denoiser.
        timesteps: float32.  # [calls, N]
        constants: the inputs that are the same at every call.
        dtype: the type to compute in.

    Yields:
        A function that selects the next call's values, by the number of the call.
    """
    times = next((m for m in module.modules() if isinstance(m, FusedTimesteps)), None)
    blocks = [m for m in module.modules() if isinstance(m, FusedResnet) and m.time_emb_proj is not None]
    cast: Mapping[str, Any] = {n: t.to(dtype) if n != "time_ids" else t for n, t in constants.items()}
    with cached_text_projections(module, cast["encoder_hidden_states"]):
        if times is None:
            yield lambda call: None
            return
        table = times.table(timesteps, cast)  # [calls, N, E]
        tables = [(block, block.projected(table)) for block in blocks]

        def select_step(call: int) -> None:
            times.cached = table[call]
            for block, rows in tables:
                block.cached = rows[call]

        try:
            yield select_step
        finally:
            times.cached = None
            for block in blocks:
                block.cached = None
