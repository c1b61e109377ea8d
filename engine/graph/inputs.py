"""Inputs of the graph pipeline: everything in a request, as arrays by name, and the options that choose a graph.

The graph leaves out the work of an absent input, so names, shapes and options together identify a graph. Imports only
numpy.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from ..plan.bindings import Array
from ..plan.image_prompts.perturbed import skips_of
from ..plan.image_prompts.style import takes_style
from ..plan.networks import controlnets_of, t2i_adapters_of
from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import Sampler, SamplerMatrix, SourceLatents
from ..stages.denoise_inputs import DenoiseInputs
from ..stages.prompt_encoder import has_text
from ..stages.vae import UNTILED, VaeTiling

IDS, WEIGHTS = "ids.", "weights."  # prefixes of a text encoder's name


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Settings that change the work of a graph: each combination is another graph."""

    clip_skip: int | None = None
    rescaled: bool = False  # guidance_rescale is not zero


def graph_unsupported_reason(plan: Plan, request: ResolvedRequest, sampler: Sampler, tiling: VaeTiling) -> str | None:
    """Return why this request cannot run as one graph, or None if it can."""
    if tiling != UNTILED:
        return "the VAE works in slices or tiles"
    if not plan.tokenizers or "vae_decoder" not in plan.components:
        return "the model has no text encoder, or no VAE"
    if not isinstance(sampler, SamplerMatrix):
        return f"{sampler.name} is not a sampler matrix ({sampler.reason})"
    if plan.makes_clips or plan.takes("edit", "latents"):
        return "the parts of its guidance, or its timesteps, are not those of a graph"
    if controlnets_of(plan.components):
        return "the model has ControlNets"
    if t2i_adapters_of(plan.components):
        return "the model has T2I-Adapters"
    if plan.image_prompts is not None:
        return "the model has IP-Adapters"
    if takes_style(plan.components["unet"].inputs):
        return "the model was loaded for Style Aligned"
    if skips_of(plan.components["unet"].inputs):
        return "the model was loaded for perturbed attention guidance"
    if request.guided and request.guidance_method != "cfg":
        return f"a graph has classifier-free guidance, and guidance_method is {request.guidance_method}"
    if request.regions is not None:
        return "the call has regional prompts"
    if request.precomputed:
        return "the caller gave the states of the text encoders"
    if request.cache_interval > 1 or (request.guided and request.guidance_interval != (0, 1)):
        return "the U-Net does different work from step to step (cache_interval, guidance_interval)"
    return None if request.output_type == "pil" else f"a graph returns bytes, and output_type is {request.output_type}"


def options_of(request: ResolvedRequest) -> GraphOptions:
    """Return the options of a request's graph."""
    return GraphOptions(clip_skip=request.clip_skip, rescaled=bool(request.guided and request.guidance_rescale))


def arrays_of(request: ResolvedRequest, matrix: SamplerMatrix, inputs: DenoiseInputs) -> dict[str, Array]:
    """Return the arrays of a batch. N is 2B with guidance, the unconditional half first; else B."""
    count = len(request.seeds)
    draw = deepcopy(inputs.draw)  # the loop draws the same noise if the graph fails
    drawn = [draw() for _ in range(matrix.draws)]
    no_draws = np.empty((0, *inputs.noise.shape), dtype=np.float32)
    strengths = np.array([request.guidance_scale, request.guidance_rescale], dtype=np.float32)
    arrays: dict[str, Array] = {
        **{IDS + name: t.ids for name, t in request.tokens.items()},
        **{WEIGHTS + name: t.weights for name, t in request.tokens.items() if (t.weights != 1).any()},
        "has_text": has_text(request),
        "noise": inputs.noise,
        "draws": np.stack(drawn, axis=1) if drawn else no_draws.swapaxes(0, 1),  # [B, draws, C, h, w]
        "rows": np.tile(matrix.rows, (count, 1, 1)),
        "timesteps": np.tile(np.append(matrix.timesteps, 0).astype(np.float32), (count, 1)),
        "guidance": np.tile(strengths, (count, 1)),
        **inputs.micro_conditioning,
        **_source_arrays(matrix, inputs.source, count),
    }
    if inputs.extra_channels is not None:
        arrays["extra_channels"] = np.concatenate([inputs.extra_channels] * (2 if request.guided else 1))
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _source_arrays(matrix: SamplerMatrix, source: SourceLatents | None, count: int) -> dict[str, Array]:
    """Return the latents of the input image, and their coefficients in the matrix."""
    if source is None or matrix.image_coefficients is None:
        return {}
    arrays: dict[str, Array] = {
        "original": source.latents,
        "image_coefficients": np.tile(matrix.image_coefficients, (count, 1)),
    }
    if source.inpaint_mask is not None and matrix.masked_rows is not None:
        arrays["inpaint_mask"] = source.inpaint_mask[:, 0].astype(np.uint8)
        arrays["masked_rows"] = np.tile(matrix.masked_rows, (count, 1, 1))
    return arrays
