"""ControlNets: run each active one at every step, and sum their outputs; zeros while none is active.

Knows the plan's components by their bindings. Does not know steps, prompts or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..backends.session import DenoisingSession
from ..plan.networks import controlnets_of
from ..plan.plan import Plan
from ..request.request import Job

Floats = NDArray[np.float32]


class Control:
    """The ControlNets of one job. The U-Net calls it at every step."""

    def __init__(
        self,
        plan: Plan,
        job: Job,
        network: Callable[[str], LoadedComponent],
        conditioning: Mapping[str, Floats],
        timesteps: NDArray[Any],
        *,
        guided: bool,
    ) -> None:
        """Open the ControlNets that the job uses; `network` returns a component by its name.

        `conditioning` are the other inputs of the U-Net, for both halves if `guided`. As in diffusers, start and end
        are fractions of the U-Net calls.
        """
        self._residuals = [b for b in plan.components["unet"].inputs if "additional_residual" in b.name]
        self._components, self._total = plan.components, len(timesteps)
        halves = 2 if guided else 1
        names = controlnets_of(plan.components) if job.control_images else []
        self._nets = []
        for name, image, scale, span in zip(
            names, job.control_images, job.control_scales, job.control_spans, strict=True
        ):
            if scale != 0:
                arrays = {
                    **conditioning,
                    "controlnet_cond": np.concatenate([image] * halves),
                    "conditioning_scale": np.full(len(image) * halves, scale, dtype=np.float32),
                }
                inputs = {b.name: arrays[b.name] for b in plan.components[name].inputs if b.name in arrays}
                self._nets.append((name, DenoisingSession(network(name), inputs, timesteps, guided=guided), span))
        sizes = plan.profile.sizes(batch=len(job.seeds) * halves, height=job.height, width=job.width)
        self._zeros = {b.name: np.zeros(b.shape(sizes), np.float32) for b in self._residuals}

    @property
    def constant_inputs(self) -> dict[str, Floats]:
        """The residual inputs of the U-Net if the job uses no ControlNet: zeros at every call."""
        return {} if self._nets else self._zeros

    def __call__(self, call: int, sample: Floats) -> dict[str, Floats]:
        """Return the U-Net's residual inputs by name, unless they are constant.  # [B, C, h, w]"""
        if not self._nets:
            return {}
        sums: list[Floats] = []
        for outputs in self._outputs(call, sample):
            sums = [a + b for a, b in zip(sums, outputs, strict=True)] if sums else list(outputs)
        return {b.name: total for b, total in zip(self._residuals, sums, strict=True)} if sums else self._zeros

    def _outputs(self, call: int, sample: Floats) -> Iterator[list[Floats]]:
        for name, session, (start, end) in self._nets:
            if call / self._total < start or (call + 1) / self._total > end:
                continue
            outputs = session(call, sample, {})
            yield [outputs[b.name] for b in self._components[name].outputs]
