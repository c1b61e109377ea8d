"""What a denoiser computes of the text and the timestep alone, once for a whole schedule instead of at every call.

Keys and values of the cross-attentions; the timesteps' embeddings of all calls in one product; and what each residual
block makes of them, a table of [calls, N, C] each. Imports torch and diffusers, and knows `fused`'s modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .fused_attention import remembered
from .fused_modules import FusedResnet
from .fused_timesteps import FusedTimesteps


@contextmanager
def step_invariants(
    module: nn.Module, timesteps: Tensor, steering: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[Callable[[int], None]]:
    """Inside, calls of `module` are those of the schedule; the function says which is the next.

    # timesteps float32 [calls, N]

    The calls must be given the same steering. One thread at a time may be inside. What was not fused computes its own
    at every call, as it would.
    """
    times = next((m for m in module.modules() if isinstance(m, FusedTimesteps)), None)
    blocks = [m for m in module.modules() if isinstance(m, FusedResnet) and m.time_emb_proj is not None]
    cast: Mapping[str, Any] = {n: t.to(dtype) if n != "time_ids" else t for n, t in steering.items()}
    with remembered(module, cast["encoder_hidden_states"]):
        if times is None:
            yield lambda call: None
            return
        table = times.table(timesteps, cast)  # [calls, N, E]
        tables = [(block, block.projected(table)) for block in blocks]

        def at(call: int) -> None:
            times.kept = table[call]
            for block, rows in tables:
                block.kept = rows[call]

        try:
            yield at
        finally:
            times.kept = None
            for block in blocks:
                block.kept = None
