"""The U-Net as the denoiser of the loop: with its conditioning and the ControlNets' residuals.

Knows which inputs stay the same for a batch; the backends use that (`backends.session`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..backends.session import DenoisingSession, NetworkCall, NetworkCalls, completed
from ..plan.image_prompts.perturbed import skips_of
from ..plan.image_prompts.style import STYLE, takes_style
from ..plan.plan import Plan
from .conditions import network_timesteps
from .controls import ControlNets, has_features, is_group, no_features, no_residuals, span_of
from .generation import Generation
from .style.reference import StyleReference, style_offsets, without_first

Floats = NDArray[np.float32]


class Unet:
    """The calls of the U-Net for one batch."""

    def __init__(
        self,
        plan: Plan,
        call: Generation,
        component: Callable[[str], LoadedComponent],
        conditioning: Mapping[str, Floats],
        extra_channels: Floats | None,
    ) -> None:
        """Prepare the calls. The first call opens sessions of the U-Net and of the ControlNets that the request uses.

        Args:
            plan: the model's plan.
            call: the request of B images, and its sampler.
            component: returns a component by its name.
            conditioning: the inputs of the U-Net that stay the same, for all parts under guidance.  # [N, ...]
            extra_channels: further channels of every sample.  # [B, C, h, w]; [N, C, h, w] if parts differ
        """
        self._plan, self._call, self._component = plan, call, component
        self.conditioning, self._extra_channels = dict(conditioning), extra_channels
        self._timesteps = network_timesteps(call.sampler) if plan.takes("latents") else call.sampler.timesteps
        self._channels = plan.latent_channels
        self._takes_style = takes_style(plan.components["unet"].inputs)
        self.reference: StyleReference | None = None  # an image whose style all take
        # whether it is guided, and steered by T2I-Adapters -> its sessions, and how often the U-Net's gets a sample
        self._sessions: dict[tuple[bool, bool], tuple[DenoisingSession, ControlNets | None, int]] = {}

    def __call__(self, call: int, sample: Floats) -> Floats:
        """Run one call.  # [B, C, h, w] -> [B, C, h, w], or [N, C, h, w] with the unconditional part first"""
        return completed(self.calls(call, sample))

    def calls(self, call: int, sample: Floats) -> NetworkCalls[Floats]:
        """Yield the calls of the ControlNets and of the U-Net for one step, and return what `__call__` returns."""
        request, sampler = self._call.request, self._call.sampler
        start, end = request.guidance_interval
        guided = request.guided and self._call.guidance_scale > 1 and start <= span_of(sampler, call)[0] < end
        kind = guided, has_features(request.adapters, sampler, call)
        if kind not in self._sessions:
            self._sessions[kind] = self._open(*kind)
        session, controls, copies = self._sessions[kind]
        residuals = {} if controls is None else (yield from controls.calls(call, sample))
        samples = np.concatenate([sample] * copies)
        if self._extra_channels is not None:
            extra = self._extra_channels if guided else self._extra_channels[-len(sample) :]
            extra = np.concatenate([extra] * (len(samples) // len(extra)))  # unless parts of guidance have their own
            samples = np.concatenate([samples, extra], axis=-3)
        parts = request.rows - (0 if guided else request.unprompted_rows)
        if self.reference is not None:
            samples, residuals = self.reference.sample(samples, call), self.reference.changing(residuals, parts)
        output: Floats = (yield NetworkCall(session, call, samples, residuals))["out_sample"]
        output = output if self.reference is None else without_first(output, parts)
        # The latent upscaler outputs the negative velocity, and a variance that nothing reads.
        return -output[:, : self._channels] if self._plan.takes("latents") else output

    def replace(self, name: str, array: Floats) -> None:
        """Replace an input that stays the same, from the next call on: of all rows, or of the conditional half.

        # [N or B or 1, ...]
        """
        rows = self.conditioning[name].copy()
        count = len(rows) if len(array) == len(rows) else len(self._call.request.seeds)
        rows[len(rows) - count :] = array
        self.conditioning[name] = rows
        self._sessions.clear()

    def _open(self, guided: bool, steered: bool) -> tuple[DenoisingSession, ControlNets | None, int]:
        plan, request, timesteps = self._plan, self._call.request, self._timesteps
        rows = request.rows - (0 if guided else request.unprompted_rows)
        unneeded = len(request.seeds) * (request.rows - rows)  # rows of the unconditional parts
        conditioning = {name: array[unneeded:] for name, array in self.conditioning.items()}
        conditioning |= {} if steered else no_features(plan, request, rows)
        controls, constants = None, conditioning
        if any(control.scale != 0 for control in request.controls) or is_group(request.controls):
            controls = ControlNets(plan, self._call, self._component, conditioning, rows=rows)
        else:
            constants = conditioning | no_residuals(plan, request, rows)
        constants = dict(constants) | self._skips(rows)
        if self._takes_style:
            constants = self._with_style(constants, rows)
        cache_interval, unet = request.cache_interval, self._component("unet")
        # A session repeats the sample for two halves itself, unless they differ in their channels of the image.
        halves = rows == 2 and request.perturbed is None and not self._plan.takes("video")
        session = DenoisingSession(unet, constants, timesteps, guided=halves, cache_interval=cache_interval)
        return session, controls, 1 if halves else rows

    def _skips(self, parts: int) -> dict[str, Floats]:
        """Return the inputs that skip self-attention in the part of perturbed attention guidance.  # [N] each"""
        count, perturbed = len(self._call.request.seeds), self._call.request.perturbed
        part = np.zeros((parts, count), np.float32)
        arrays = {name: part.reshape(-1) for name in skips_of(self._plan.components["unet"].inputs)}
        if perturbed is None:
            return arrays
        part = part.copy()
        part[-2] = 1
        return arrays | dict.fromkeys(perturbed.skips, part.reshape(-1))

    def _with_style(self, constants: Mapping[str, Floats], parts: int) -> dict[str, NDArray[Any]]:
        """Return the inputs with the rows whose style each row takes, and with a given reference in front."""
        count, style = len(self._call.request.seeds), self._call.request.style
        arrays: dict[str, NDArray[Any]] = dict(constants)
        if self.reference is not None:
            arrays, count = self.reference.constants(constants, parts), count + 1
        offsets = style_offsets(count, parts)
        return arrays | {STYLE: np.zeros_like(offsets) if style is None else offsets}
