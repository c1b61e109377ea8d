"""The loop over the steps of a schedule, as a generator: the caller may look, wait or leave between any two.

Knows a denoiser (a function), a sampler's run and the arrays that the denoiser is given at every step; knows nothing
of backends, families or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from calotype.errors import Cancelled, NotFiniteError
from calotype.guidance import guide
from calotype.sampler import Sampler, SamplerRun

Floats = NDArray[np.float32]
# (sample [N, C, h, w], timestep [N], name -> array [N, ...]) -> [N, C, h, w]
Denoiser = Callable[[Floats, Floats, Mapping[str, Floats]], Floats]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers a batch: inputs of the network by name, the unconditional half first where there is guidance."""

    arrays: Mapping[str, Floats]  # [2B, ...] when guided, else [B, ...]
    guidance_scale: float
    guided: bool
    guidance_rescale: float = 0.0


def denoise(
    denoiser: Denoiser, sampler: Sampler, run: SamplerRun, conditioning: Conditioning, stop: Event
) -> Iterator[int]:
    """Yield i after call i of the network. Raises `Cancelled` at the first step after `stop` was set."""
    guided, strengths = conditioning.guided, (conditioning.guidance_scale, conditioning.guidance_rescale)
    for i, timestep in enumerate(sampler.timesteps):
        if stop.is_set():
            raise Cancelled(f"cancelled after {i} of {sampler.calls} steps.")
        x = run.input(i)  # [B, C, h, w]
        x = np.concatenate([x, x]) if guided else x
        try:
            output = denoiser(x, np.full(len(x), timestep, dtype=np.float32), conditioning.arrays)
        except NotFiniteError as failed:
            raise NotFiniteError(f"at step {i + 1} of {sampler.calls} {failed}") from None
        run.push(i, guide(output, *strengths) if guided else output)
        yield i
