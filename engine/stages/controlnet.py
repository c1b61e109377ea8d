"""ControlNets: run each active one at every step, and sum their outputs; zeros while none is active.

Knows the plan's components by their bindings. Does not know steps, prompts or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..backends.session import DenoisingSession, NetworkCall, NetworkCalls
from ..plan.bindings import Binding
from ..plan.networks import controlnets_of
from ..plan.plan import Plan
from ..request.controls import ControlInput
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import Sampler
from .generation import Generation

Floats = NDArray[np.float32]


def residuals_of(plan: Plan) -> list[Binding]:
    """Return the inputs of the U-Net to which ControlNets add; empty for a plan without ControlNets."""
    return [b for b in plan.components["unet"].inputs if "additional_residual" in b.name]


def no_residuals(plan: Plan, request: ResolvedRequest, rows: int) -> dict[str, Floats]:
    """Return these inputs while no ControlNet is active: zeros. `rows` is 2 or 3 under guidance.  # [N, C, h, w]"""
    sizes = plan.profile.sizes(batch=len(request.seeds) * rows, height=request.height, width=request.width)
    return {b.name: np.zeros(b.shape(sizes), np.float32) for b in residuals_of(plan)}


def span_of(sampler: Sampler, call: int) -> tuple[float, float]:
    """Return where a call begins and ends, as fractions of the calls of the full schedule."""
    place = call if sampler.positions is None else sampler.positions[call]
    total = sampler.full_calls or len(sampler.timesteps)
    return place / total, (place + 1) / total


class ControlNets:
    """The ControlNets of one batch. The U-Net calls them at every step."""

    def __init__(
        self,
        plan: Plan,
        call: Generation,
        component: Callable[[str], LoadedComponent],
        conditioning: Mapping[str, Floats],
        *,
        rows: int,
    ) -> None:
        """Open the ControlNets that the call uses; `component` returns one by its name.

        `conditioning` are the other inputs of the U-Net, with `rows` rows for each image: 2 or 3 under guidance. As in
        diffusers, start and end are fractions of the U-Net calls.
        """
        self._residuals = [b.name for b in residuals_of(plan)]
        self._components, self._sampler = plan.components, call.sampler
        self._copies = rows if rows == 3 else 1  # a session repeats the sample for two halves itself
        self._nets: list[tuple[str, DenoisingSession, ControlInput]] = []
        for name, control in zip(controlnets_of(plan.components), call.request.controls, strict=True):
            if control.scale == 0:
                continue
            arrays = {
                **conditioning,
                "controlnet_cond": np.concatenate([control.images] * rows),
                "conditioning_scale": np.full(len(control.images) * rows, control.scale, dtype=np.float32),
            }
            inputs = {b.name: arrays[b.name] for b in plan.components[name].inputs if b.name in arrays}
            self._nets.append(
                (name, DenoisingSession(component(name), inputs, call.sampler.timesteps, guided=rows == 2), control)
            )
        self._zeros = no_residuals(plan, call.request, rows)

    def calls(self, call: int, sample: Floats) -> NetworkCalls[dict[str, Floats]]:
        """Yield the calls of the active ControlNets, and return the U-Net's residual inputs by name.  # [N, C, h, w]"""
        sums: list[Floats] = []
        sample = np.concatenate([sample] * self._copies)
        start, end = span_of(self._sampler, call)
        for name, session, control in self._nets:
            if control.start <= start and end <= control.end:
                outputs = yield NetworkCall(session, call, sample, {})
                residuals = [outputs[b.name] for b in self._components[name].outputs]
                sums = [a + b for a, b in zip(sums, residuals, strict=True)] if sums else residuals
        return dict(zip(self._residuals, sums, strict=True)) if sums else self._zeros
