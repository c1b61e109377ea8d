"""What a whole picture takes of a request: all that was said, as arrays by name.

An input that is not there is a part of the work that is not done, so that names and shapes together say what a graph of
it launches. Imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..plan.bindings import Array
from ..plan.networks import controlnets_of
from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.guidance import guidance_embedding
from ..sampling.matrix import Draw, Sampler, SamplerMatrix
from ..stages.conditioning import notes_of, time_ids_of, tokens_of
from ..stages.initial_latents import InitialLatents
from ..text.tokenizer import ClipTokenizer

IDS, WEIGHTS = "ids.", "weights."  # and a text encoder's name
SKIP = "clip_skip."  # and how many layers are left out


@dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """A job with its schedule, its noise and the picture that it sets out from."""

    job: Job
    sampler: Sampler
    ready: InitialLatents
    draw: Draw  # stands after the initial noise


def graph_unsupported_reason(plan: Plan, job: Job, sampler: Sampler) -> str | None:
    """Why this job is painted step by step; None where it can be one graph."""
    if not plan.tokenizers or "vae_decoder" not in plan.components:
        return "the model has no text, or no autoencoder"
    if not isinstance(sampler, SamplerMatrix):
        return f"{sampler.name} is no sampler matrix ({sampler.reason})"
    if controlnets_of(plan.components):
        return "the model has ControlNets"
    if job.cache_interval > 1 or (job.guided and job.guidance_interval != (0, 1)):
        return "calls of the U-Net differ from step to step (cache_interval, guidance_interval)"
    return None if job.output_type == "pil" else f"a graph makes bytes, and output_type is {job.output_type}"


def inputs_of(
    plan: Plan, tokenizers: Mapping[str, ClipTokenizer], asked: GraphInputs
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays, and notes for the report. N is 2B with guidance, the unconditional half first; else B."""
    job, matrix = asked.job, asked.sampler
    assert isinstance(matrix, SamplerMatrix)
    texts = (*job.negative_prompts, *job.prompts) if job.guided else job.prompts
    tokens = tokens_of(plan, tokenizers, [t or "" for t in texts])
    count = len(job.seeds)
    drawn = [asked.draw() for _ in range(matrix.draws)]
    none = np.empty((0, *asked.ready.noise.shape), dtype=np.float32)
    arrays: dict[str, Array] = {
        **{IDS + name: t.ids for name, t in tokens.items()},
        **{WEIGHTS + name: t.weights for name, t in tokens.items() if (t.weights != 1).any()},
        "said": np.array([t is not None for t in texts], dtype=np.float32),
        "noise": asked.ready.noise,
        "draws": np.stack(drawn, axis=1) if drawn else none.swapaxes(0, 1),  # [B, draws, C, h, w]
        "rows": np.tile(matrix.rows, (count, 1, 1)),
        "timesteps": np.tile(np.append(matrix.timesteps, 0).astype(np.float32), (count, 1)),
        "guidance": np.tile(np.array([job.guidance_scale, job.guidance_rescale], dtype=np.float32), (count, 1)),
        **_steering(plan, job, len(texts)),
        **_original(matrix, asked.ready, count),
    }
    if asked.ready.extra_channels is not None and plan.inpaints:
        arrays["beside"] = np.concatenate([asked.ready.extra_channels] * (len(texts) // count))
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, notes_of(job, tokens)


def _steering(plan: Plan, job: Job, rows: int) -> dict[str, Array]:
    """What some families and requests have besides."""
    found: dict[str, Array] = {}
    if plan.prompting.pooled is not None:
        found["time_ids"] = time_ids_of(plan, job)
    for binding in plan.components["unet"].inputs:
        if binding.name == "timestep_cond":
            embedding = guidance_embedding(job.guidance_scale, int(binding.dims[1]))
            found[binding.name] = np.tile(embedding, (rows, 1))
    if job.clip_skip:
        found[f"{SKIP}{job.clip_skip}"] = np.zeros(1, dtype=np.float32)
    if job.guided and job.guidance_rescale:
        found["rescaled"] = np.zeros(1, dtype=np.float32)
    return found


def _original(matrix: SamplerMatrix, ready: InitialLatents, count: int) -> dict[str, Array]:
    """The picture that is set out from, and what the matrix makes of it."""
    if ready.original is None or matrix.image_coefficients is None:
        return {}
    found: dict[str, Array] = {
        "original": ready.original.latents,
        "image_coefficients": np.tile(matrix.image_coefficients, (count, 1)),
    }
    if ready.original.inpaint_mask is not None and matrix.masked_rows is not None:
        found["inpaint_mask"] = ready.original.inpaint_mask[:, 0].astype(np.uint8)
        found["masked_rows"] = np.tile(matrix.masked_rows, (count, 1, 1))
    return found
