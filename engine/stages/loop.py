"""The denoising loop as a generator: the caller may preview, wait or stop between two steps.

Knows a denoiser (a function) and a sampler's run. Does not know backends, families or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, NotFiniteError
from ..request.resolved import ResolvedRequest
from ..sampling.guidance import guide, guide_by_image, rescaled
from ..sampling.guidance_methods import ProjectedGuidance, guide_projected, zero_star
from ..sampling.matrix import SamplerRun
from .denoise_inputs import DenoiseInputs
from .generation import Generation

Floats = NDArray[np.float32]
# (call, sample [B, C, h, w]) -> [B, C, h, w], or [N, C, h, w] under guidance, the unconditional part first
Denoiser = Callable[[int, Floats], Floats]


def denoise(denoiser: Denoiser, call: Generation, inputs: DenoiseInputs) -> Iterator[SamplerRun]:
    """Yield the sampler's run after each call of the network. Raises `Cancelled` at the first after `stop` is set."""
    request, sampler = call.request, call.sampler
    run = sampler.run(inputs.noise, inputs.draw, seeds=request.seeds, original=inputs.source)
    projected = _projected(request) if request.guidance_method == "apg" else None
    for i in range(sampler.calls):
        if call.stop.is_set():
            done = call.earlier + i
            raise Cancelled(f"cancelled after {done} of {call.total} steps.", step=done, total=call.total)
        x = run.input(i)  # [B, C, h, w]
        try:
            output = denoiser(i, x)
        except NotFiniteError as failed:
            step = call.earlier + i + 1
            message = f"at step {step} of {call.total} {failed}"
            raise NotFiniteError(message, **failed.data | {"step": step}) from None
        scale, by_image, rescale = call.guidance_scale, request.image_guidance_scale, request.guidance_rescale
        if len(output) == 3 * len(x) and by_image is not None:
            output = guide_by_image(output, scale, by_image, rescale)
        elif len(output) > len(x) and request.guidance_method != "cfg":
            output = _by_method(projected, x, output, call, i)
        elif len(output) > len(x):
            output = guide(output, scale, rescale)
        run.push(i, output)
        yield run
        if run.ended:
            return


def _by_method(projected: ProjectedGuidance | None, x: Floats, output: Floats, call: Generation, i: int) -> Floats:
    """Combine the halves of an output by APG, if it is set, or by CFG-Zero*.  # [2B, C, h, w] -> [B, C, h, w]"""
    uncond, cond = np.split(output, 2)
    if projected is None:
        guided = zero_star(uncond, cond, call.guidance_scale)
    else:
        of_sample, of_output = call.sampler.preview[i]
        guided = guide_projected(projected, x, output, call.guidance_scale, (of_sample, of_output))
    return rescaled(guided, cond, call.request.guidance_rescale)


def _projected(request: ResolvedRequest) -> ProjectedGuidance:
    return ProjectedGuidance(eta=request.apg_eta, momentum=request.apg_momentum, rescale=request.apg_rescale)
