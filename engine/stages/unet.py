"""The U-Net as the loop calls it: with what steers it, what ControlNets add, and guidance where there is some.

Knows which inputs stay for a whole picture; what that is worth is the backends' to know (`series`).
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
    """Makes a denoiser for a job. `network` gives a component by its name."""

    def __init__(self, plan: Plan, network: Callable[[str], LoadedComponent]) -> None:
        self._plan, self._network = plan, network

    def __call__(
        self, job: Job, sampler: Sampler, conditioning: Conditioning, extra_channels: Floats | None
    ) -> Denoiser:
        """For one batch; `beside` are further channels of every sample, as U-Nets that paint in masks take.

        # beside [B, C, h, w]
        """
        calls = self._calls(job, sampler, conditioning.arrays, guided=conditioning.guided)
        if conditioning.guided and job.guidance_interval != (0, 1):
            halves = {name: array[len(job.seeds) :] for name, array in conditioning.arrays.items()}
            calls = _between(
                job.guidance_interval, sampler.calls, calls, self._calls(job, sampler, halves, guided=False)
            )

        def run(call: int, sample: Floats) -> Floats:
            return calls(
                call, sample, sample if extra_channels is None else np.concatenate([sample, extra_channels], axis=1)
            )

        return run

    def _calls(self, job: Job, sampler: Sampler, arrays: Mapping[str, Floats], *, guided: bool) -> _Calls:
        control = Control(self._plan, job, self._network, arrays, sampler.timesteps, guided=guided)
        given = {**arrays, **control.stays}
        session = DenoisingSession(
            self._network("unet"), given, sampler.timesteps, guided=guided, cache_interval=job.cache_interval
        )

        def run(call: int, sample: Floats, whole: Floats) -> Floats:
            return session(call, whole, control(call, sample))["out_sample"]

        return run


_Calls = Callable[[int, Floats, Floats], Floats]  # (call, the sample for ControlNets, the U-Net's) -> its output


def _between(span: tuple[float, float], total: int, within: _Calls, outside: _Calls) -> _Calls:
    """One of two by how far a call is on the way."""
    start, end = span

    def run(call: int, sample: Floats, whole: Floats) -> Floats:
        return (within if start <= call / total < end else outside)(call, sample, whole)

    return run
