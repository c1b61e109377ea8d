"""The steps of denoising: the input of the network, its call, guidance, and the sampler's part.

A step yields the calls of its networks: who drives it runs them, alone or together with those of other requests, and
may preview, wait or stop between two steps. Knows a denoiser (a function) and a sampler's run. Does not know backends,
families or prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..backends.session import NetworkCalls
from ..errors import Cancelled, NotFiniteError
from ..request.resolved import ResolvedRequest
from ..request.video.clip import ImageClip
from ..sampling.guidance import guide, guide_by_image, guide_perturbed, join_regions, rescaled
from ..sampling.guidance_methods import ProjectedGuidance, guide_projected, zero_star
from ..sampling.matrix import SamplerRun
from .generation import Generation

Floats = NDArray[np.float32]
# (call, sample [B, C, h, w]) -> [B, C, h, w], or [N, C, h, w] under guidance, the unconditional part first
Denoiser = Callable[[int, Floats], NetworkCalls[Floats]]
# (call, sample [B, C, h, w], output [N, C, h, w]) -> [B, C, h, w]
Guidance = Callable[[int, Floats, Floats], Floats]


def step(denoiser: Denoiser, guidance: Guidance, call: Generation, run: SamplerRun, i: int) -> NetworkCalls[None]:
    """Take step i: yield the calls of the networks, and push their output.

    Raises:
        Cancelled: `call.stop` is set.
        NotFiniteError: a network returned numbers that are not finite.
    """
    if call.stop.is_set():
        done = call.earlier + i
        raise Cancelled(f"cancelled after {done} of {call.total} steps.", step=done, total=call.total)
    x = run.input(i)  # [B, C, h, w]
    try:
        output = yield from denoiser(i, x)
    except NotFiniteError as failed:
        number = call.earlier + i + 1
        message = f"at step {number} of {call.total} {failed}"
        raise NotFiniteError(message, **failed.data | {"step": number}) from None
    run.push(i, guidance(i, x, output))


def guidance_of(call: Generation) -> Guidance:
    """Return the function that combines the parts of the outputs of one batch. It keeps APG's momentum."""
    request = call.request
    projected = _projected(request) if request.guidance_method == "apg" else None
    shares_at = None if request.regions is None else functools.cache(request.regions.shares_at)

    def combine(i: int, x: Floats, output: Floats) -> Floats:
        scale, by_image, rescale = call.guidance_scale, request.image_guidance_scale, request.guidance_rescale
        if shares_at is not None:
            output = join_regions(output, shares_at(*x.shape[2:]), len(x))
        if request.perturbed is not None:
            away = request.perturbed.scale_at(float(call.sampler.timesteps[i]))
            return guide_perturbed(output, scale, away, rescale, len(x))
        if len(output) == len(x):
            return output
        if len(output) == 3 * len(x) and by_image is not None:
            return guide_by_image(output, scale, by_image, rescale)
        if request.guidance_method != "cfg":
            return _by_method(projected, x, output, call, i)
        clip = request.clip
        if isinstance(clip, ImageClip) and scale == clip.guidance_scale:  # a callback may set one for all
            return guide(output, clip.guidance_scales, rescale)
        return guide(output, scale, rescale)

    return combine


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
