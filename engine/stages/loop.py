"""The denoising loop as a generator: the caller may preview, wait or stop between two steps.

Knows a denoiser (a function), a sampler's run and the conditioning. Does not know backends, families or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, NotFiniteError
from ..sampling.guidance import guide
from ..sampling.matrix import Sampler, SamplerRun

Floats = NDArray[np.float32]
# (call, sample [B, C, h, w]) -> [B, C, h, w], or [2B, C, h, w] under guidance, the unconditional half first
Denoiser = Callable[[int, Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Conditioning of a batch: inputs of the network by name, the unconditional half first if there is guidance."""

    arrays: Mapping[str, Floats]  # [2B, ...] when guided, else [B, ...]
    guidance_scale: float
    guided: bool
    guidance_rescale: float = 0.0


def denoise(
    denoiser: Denoiser, sampler: Sampler, run: SamplerRun, conditioning: Conditioning, stop: Event
) -> Iterator[int]:
    """Yield i after call i of the network. Raises `Cancelled` at the first step after `stop` is set."""
    strengths = conditioning.guidance_scale, conditioning.guidance_rescale
    for i in range(sampler.calls):
        if stop.is_set():
            raise Cancelled(f"cancelled after {i} of {sampler.calls} steps.")
        x = run.input(i)  # [B, C, h, w]
        try:
            output = denoiser(i, x)
        except NotFiniteError as failed:
            raise NotFiniteError(f"at step {i + 1} of {sampler.calls} {failed}") from None
        run.push(i, guide(output, *strengths) if len(output) > len(x) else output)
        yield i
