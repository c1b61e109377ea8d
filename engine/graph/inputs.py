"""Inputs of the graph pipeline: everything in a request, as arrays by name.

The graph leaves out the work of an absent input, so names and shapes together identify a graph. Imports only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..plan.bindings import Array
from ..plan.networks import controlnets_of
from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.matrix import Draw, Sampler, SamplerMatrix
from ..stages.conditioning import family_inputs, notes_of, tokens_of
from ..stages.initial_latents import InitialLatents
from ..text.tokenizer import ClipTokenizer

IDS, WEIGHTS = "ids.", "weights."  # prefixes of a text encoder's name
SKIP = "clip_skip."  # prefix of the number of skipped layers


@dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """A job with its sampler, its initial latents and its noise."""

    job: Job
    sampler: Sampler
    ready: InitialLatents
    draw: Draw  # the noise after the initial noise


def graph_unsupported_reason(plan: Plan, job: Job, sampler: Sampler) -> str | None:
    """Return why this job cannot run as one graph, or None if it can."""
    if not plan.tokenizers or "vae_decoder" not in plan.components:
        return "the model has no text encoder, or no VAE"
    if not isinstance(sampler, SamplerMatrix):
        return f"{sampler.name} is not a sampler matrix ({sampler.reason})"
    if controlnets_of(plan.components):
        return "the model has ControlNets"
    if job.cache_interval > 1 or (job.guided and job.guidance_interval != (0, 1)):
        return "the U-Net does different work from step to step (cache_interval, guidance_interval)"
    return None if job.output_type == "pil" else f"a graph returns bytes, and output_type is {job.output_type}"


def inputs_of(
    plan: Plan, tokenizers: Mapping[str, ClipTokenizer], inputs: GraphInputs
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the arrays, and notes for the report. N is 2B with guidance, the unconditional half first; else B."""
    job, matrix = inputs.job, inputs.sampler
    assert isinstance(matrix, SamplerMatrix)
    texts = (*job.negative_prompts, *job.prompts) if job.guided else job.prompts
    tokens = tokens_of(plan, tokenizers, [t or "" for t in texts])
    count = len(job.seeds)
    drawn = [inputs.draw() for _ in range(matrix.draws)]
    no_draws = np.empty((0, *inputs.ready.noise.shape), dtype=np.float32)
    arrays: dict[str, Array] = {
        **{IDS + name: t.ids for name, t in tokens.items()},
        **{WEIGHTS + name: t.weights for name, t in tokens.items() if (t.weights != 1).any()},
        "has_text": np.array([t is not None for t in texts], dtype=np.float32),
        "noise": inputs.ready.noise,
        "draws": np.stack(drawn, axis=1) if drawn else no_draws.swapaxes(0, 1),  # [B, draws, C, h, w]
        "rows": np.tile(matrix.rows, (count, 1, 1)),
        "timesteps": np.tile(np.append(matrix.timesteps, 0).astype(np.float32), (count, 1)),
        "guidance": np.tile(np.array([job.guidance_scale, job.guidance_rescale], dtype=np.float32), (count, 1)),
        **_optional_inputs(plan, job, len(texts)),
        **_source_latents(matrix, inputs.ready, count),
    }
    if inputs.ready.extra_channels is not None and plan.inpaints:
        arrays["extra_channels"] = np.concatenate([inputs.ready.extra_channels] * (len(texts) // count))
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, notes_of(job, tokens)


def _optional_inputs(plan: Plan, job: Job, rows: int) -> dict[str, Array]:
    """Return the inputs that only some families and requests have."""
    arrays: dict[str, Array] = {**family_inputs(plan, job, rows)}
    if job.clip_skip:
        arrays[f"{SKIP}{job.clip_skip}"] = np.zeros(1, dtype=np.float32)
    if job.guided and job.guidance_rescale:
        arrays["rescaled"] = np.zeros(1, dtype=np.float32)
    return arrays


def _source_latents(matrix: SamplerMatrix, ready: InitialLatents, count: int) -> dict[str, Array]:
    """Return the latents of the input image, and their coefficients in the matrix."""
    if ready.original is None or matrix.image_coefficients is None:
        return {}
    arrays: dict[str, Array] = {
        "original": ready.original.latents,
        "image_coefficients": np.tile(matrix.image_coefficients, (count, 1)),
    }
    if ready.original.inpaint_mask is not None and matrix.masked_rows is not None:
        arrays["inpaint_mask"] = ready.original.inpaint_mask[:, 0].astype(np.uint8)
        arrays["masked_rows"] = np.tile(matrix.masked_rows, (count, 1, 1))
    return arrays
