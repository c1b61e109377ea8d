"""The U-Net as the denoiser of the loop: with its conditioning, the ControlNets' residuals, and guidance.

Knows which inputs stay the same for a batch; the backends use that (`backends.session`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..backends.session import DenoisingSession
from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.matrix import Sampler
from .controlnet import Control
from .loop import Conditioning, Denoiser

Floats = NDArray[np.float32]


class Denoisers:
    """Factory of a job's denoiser. `network` returns a component by its name."""

    def __init__(self, plan: Plan, network: Callable[[str], LoadedComponent]) -> None:
        self._plan, self._network = plan, network

    def __call__(
        self, job: Job, sampler: Sampler, conditioning: Conditioning, extra_channels: Floats | None
    ) -> Denoiser:
        """Return the denoiser of one batch. An inpainting U-Net takes `extra_channels` [B, C, h, w] at every call."""
        calls = self._calls(job, sampler, conditioning.arrays, guided=conditioning.guided)
        if conditioning.guided and job.guidance_interval != (0, 1):
            positive = {name: array[len(job.seeds) :] for name, array in conditioning.arrays.items()}
            unguided = self._calls(job, sampler, positive, guided=False)
            calls = _between(job.guidance_interval, sampler.calls, calls, unguided)

        def run(call: int, sample: Floats) -> Floats:
            if extra_channels is None:
                return calls(call, sample, sample)
            return calls(call, sample, np.concatenate([sample, extra_channels], axis=1))

        return run

    def _calls(self, job: Job, sampler: Sampler, arrays: Mapping[str, Floats], *, guided: bool) -> _Calls:
        control = Control(self._plan, job, self._network, arrays, sampler.timesteps, guided=guided)
        inputs = {**arrays, **control.constant_inputs}
        session = DenoisingSession(
            self._network("unet"), inputs, sampler.timesteps, guided=guided, cache_interval=job.cache_interval
        )

        def run(call: int, sample: Floats, unet_sample: Floats) -> Floats:
            return session(call, unet_sample, control(call, sample))["out_sample"]

        return run


_Calls = Callable[[int, Floats, Floats], Floats]  # (call, the sample for ControlNets, the U-Net's) -> its output


def _between(span: tuple[float, float], total: int, within: _Calls, outside: _Calls) -> _Calls:
    """Choose one of two denoisers by the fraction of the calls that are done."""
    start, end = span

    def run(call: int, sample: Floats, unet_sample: Floats) -> Floats:
        return (within if start <= call / total < end else outside)(call, sample, unet_sample)

    return run
