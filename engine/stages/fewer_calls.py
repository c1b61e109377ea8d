"""Samplers with fewer network calls than the schedule of a request, if it asks for one.

A fitted sampler runs only for what it was fitted to. Elsewhere the full schedule runs, and a note says why. A fit that
was kept unchecked runs with a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import InputError, SamplerError
from ..lora.lora import Lora
from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..sampling.cache import SamplerCache
from ..sampling.fewer_calls import best_forecast
from ..sampling.fitted import FittedSampler, FittedSamplers, part_of
from ..sampling.matrix import SamplerMatrix
from ..sampling.schedule_range import FULL_SCHEDULE
from ..sampling.schedulers import SchedulerSpec
from .generation import Generation


class FewerCalls:
    """The fitted samplers and forecasts of a plan. Threads may share it."""

    def __init__(self, plan: Plan, compiled: SamplerCache) -> None:
        self._plan, self._compiled = plan, compiled
        self._fitted = FittedSamplers(plan.fingerprint, plan.samplers)

    def __call__(self, call: Generation, loras: Sequence[Lora]) -> None:
        """Give a call the sampler that its request asks for, or a note if its schedule stays.

        Raises:
            SamplerError: The schedule is not a matrix, or no sampler was fitted to it.
            InputError: `calls` is more than the schedule has.
        """
        request, full = call.request, call.sampler
        if not isinstance(full, SamplerMatrix):
            message = f"calls and min_psnr need a schedule that is a matrix, and {full.reason}."
            raise SamplerError(message, scheduler=call.spec.name, steps=request.steps)
        if request.calls is not None and request.calls_from == "forecast":
            call.sampler, call.calls = self._forecast(request, call.spec, full), request.calls
            return
        digests = digests_of(loras)
        fit = self._fit(request, call.spec, digests)
        reason = _reason_against(request, digests, fit)
        if fit is None or reason:
            call.notes.append(f"all calls of the schedule ran, not a fitted sampler: {reason}")
            return
        call.sampler = fit.matrix(full, str(part_of(request.schedule_range)), request.guidance_scale)
        call.calls = int(fit.settings["calls"])
        call.notes += _notes(request, fit)

    def _forecast(self, request: ResolvedRequest, spec: SchedulerSpec, full: SamplerMatrix) -> SamplerMatrix:
        assert request.calls is not None
        total = self._compiled(request.scheduler, request.steps, FULL_SCHEDULE).sampler.calls
        if request.calls > total:
            message = f"calls is {request.calls}, and {spec.name} in {request.steps} steps has only {total}."
            raise InputError(message, argument="calls", got=request.calls)
        return best_forecast(full, max(1, round(request.calls * full.calls / total)))

    def _fit(self, request: ResolvedRequest, spec: SchedulerSpec, loras: Sequence[str]) -> FittedSampler | None:
        """Return the fit that the request asks for, or None if none is close enough. Raises if there is none at all."""
        command = f"calotype fit {self._plan.model} --scheduler {spec.name} --steps {request.steps}"
        if request.calls is not None:
            sets = [loras, ()] if loras else [()]  # without these LoRAs: it does not hold, and the note says so
            for each in sets:
                if (fit := self._fitted.find(spec, request.steps, request.calls, each)) is not None:
                    return fit
            raise SamplerError(
                f"No sampler of {request.calls} calls was fitted to {self._plan.model} for {spec.name} in "
                f'{request.steps} steps. Fit one: {command} --calls {request.calls}. Or pass calls_from="forecast".',
                scheduler=spec.name,
                steps=request.steps,
            )
        fits = list(self._fitted.all(spec, request.steps, loras))
        if not fits:
            message = (
                f"min_psnr needs fitted samplers, and {self._plan.model} has none for {spec.name} in {request.steps} "
                f"steps. Fit some: {command} --calls 8:10:12."
            )
            raise SamplerError(message, scheduler=spec.name, steps=request.steps)
        assert request.min_psnr is not None
        return next((fit for fit in fits if fit.p10 >= request.min_psnr), None)


def digests_of(loras: Sequence[Lora]) -> tuple[str, ...]:
    """Return the content and weight of LoRAs as texts, which identify what a fit was made with."""
    return tuple(f"{lora.digest}:{lora.weight!r}" for lora in loras)


def _reason_against(request: ResolvedRequest, loras: Sequence[str], fit: FittedSampler | None) -> str:
    """Return why a fit is not known to hold for a request; empty if it is."""
    if fit is None:
        return f"none of the fitted samplers keeps nine of ten images within {request.min_psnr:g} dB (min_psnr)"
    low, high = fit.settings["guidance"]
    part = part_of(request.schedule_range)
    if part not in fit.parts:
        return "it was fitted neither to this strength, nor to a handoff between models, timesteps, sigmas or eta"
    if request.perturbed is not None:
        return "it was fitted without perturbed attention guidance"
    if request.regions is not None:
        return "it was fitted without regional prompts"
    if list(loras) != list(fit.settings["loras"]):
        return "it was fitted with other LoRAs, or without any"
    if request.guided != fit.settings["guided"]:
        return f"it was fitted {'with' if fit.settings['guided'] else 'without'} guidance"
    if request.guided and request.guidance_method != "cfg":
        return f"it was fitted to classifier-free guidance, and guidance_method is {request.guidance_method}"
    if request.guided and not low <= request.guidance_scale <= high:
        return f"guidance_scale is {request.guidance_scale:g}, and it was fitted from {low:g} to {high:g}"
    if request.guided and (request.guidance_rescale or request.guidance_interval != (0, 1)):
        return "it was fitted without guidance_rescale and guidance_interval"
    return ""


def _notes(request: ResolvedRequest, fit: FittedSampler) -> Iterator[str]:
    height, width = fit.settings["height"], fit.settings["width"]
    if (height, width) != (request.height, request.width):
        yield f"the sampler was fitted at {width} x {height} pixels, and may be less exact at another size"
    if fit.settings.get("unchecked"):
        yield "the fitted sampler was kept unchecked: its images were not compared with those of the full schedule"
