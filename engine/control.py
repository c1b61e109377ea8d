"""What ControlNets add to the U-Net: one call of each a step, their outputs summed, zeros where none is asked for.

Knows the plan's components by their bindings; knows nothing of steps, prompts or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.networks import controlnets_of
from calotype.plan import Plan
from calotype.request import Job

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]  # takes its inputs by name, gives its outputs by name


class Control:
    """The ControlNets' part in one job. Called at every step, before the U-Net."""

    def __init__(self, plan: Plan, job: Job, network: Callable[[str], Network], calls: int) -> None:
        """`network` gives a component by its name; only those that have a part in the job are opened.

        `calls` is how often the U-Net will be called: fractions of the way are counted in them, as diffusers does.
        """
        self._takes = [b for b in plan.components["unet"].inputs if "additional_residual" in b.name]
        self._components = plan.components
        self._network = network
        self._calls, self._call = calls, 0
        halves = 2 if job.guided else 1
        names = controlnets_of(plan.components) if job.control_images else []
        self._nets = [
            (name, np.concatenate([image] * halves), np.full(len(image) * halves, scale, dtype=np.float32), span)
            for name, image, scale, span in zip(
                names, job.control_images, job.control_scales, job.control_spans, strict=True
            )
            if scale != 0
        ]
        sizes = plan.profile.sizes(batch=len(job.seeds) * halves, height=job.height, width=job.width)
        self._zeros = {b.name: np.zeros(b.shape(sizes), np.float32) for b in self._takes}

    def __call__(self, sample: Floats, timestep: Floats, conditioning: Mapping[str, Floats]) -> dict[str, Floats]:
        """The U-Net's residual inputs by name; none where the plan has no ControlNets."""
        given = {"sample": sample, "timestep": timestep, **conditioning}
        sums: list[Floats] = []
        for outputs in self._outputs(given):
            sums = [a + b for a, b in zip(sums, outputs, strict=True)] if sums else list(outputs)
        self._call += 1
        return {b.name: total for b, total in zip(self._takes, sums, strict=True)} if sums else self._zeros

    def _outputs(self, given: Mapping[str, Floats]) -> Iterator[list[Floats]]:
        for name, image, scale, (start, end) in self._nets:
            if self._call / self._calls < start or (self._call + 1) / self._calls > end:
                continue
            taken = {b.name: given[b.name] for b in self._components[name].inputs if b.name in given}
            outputs: Any = self._network(name)(controlnet_cond=image, conditioning_scale=scale, **taken)
            yield [outputs[b.name] for b in self._components[name].outputs]
