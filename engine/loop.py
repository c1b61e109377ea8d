"""The loop over the steps of a schedule, as a generator: the caller may look, wait or leave between any two.

Knows a denoiser (a function), a sampler's run and the text's states; knows nothing of backends, families or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from calotype.errors import CalotypeError, Cancelled
from calotype.guidance import guide, is_guided
from calotype.sampler import Sampler, SamplerRun

Floats = NDArray[np.float32]
# (sample [N, C, h, w], timestep [N], states [N, T, W]) -> [N, C, h, w]
Denoiser = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers a batch: the text encoder's states, the unconditional half first where there is guidance."""

    states: Floats  # [2B, T, W] when guided, else [B, T, W]
    guidance_scale: float


def denoise(
    denoiser: Denoiser, sampler: Sampler, run: SamplerRun, conditioning: Conditioning, stop: Event
) -> Iterator[int]:
    """Yield i after call i of the network. Raises `Cancelled` at the first step after `stop` was set."""
    guided = is_guided(conditioning.guidance_scale)
    for i, timestep in enumerate(sampler.timesteps):
        if stop.is_set():
            raise Cancelled(f"cancelled after {i} of {sampler.calls} steps.")
        x = run.input(i)  # [B, C, h, w]
        x = np.concatenate([x, x]) if guided else x
        output = denoiser(x, np.full(len(x), timestep, dtype=np.float32), conditioning.states)
        if not np.isfinite(output).all():
            raise CalotypeError(
                f"the U-Net gave numbers that are not finite at step {i + 1} of {sampler.calls}: its weights are "
                "damaged, or its precision is too low for this model."
            )
        run.push(i, guide(output, conditioning.guidance_scale) if guided else output)
        yield i
