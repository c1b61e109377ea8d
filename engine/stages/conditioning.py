"""Text conditioning: run prompts through the text encoders, and add the inputs of the model's family.

The plan's `Prompting` names the encoders and the outputs to use. Does not know steps or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CalotypeError
from ..plan.plan import Plan, skipping
from ..request.request import Job
from ..sampling.guidance import guidance_embedding
from ..system.lru_cache import LruCache
from ..text.tokenizer import ClipTokenizer, Tokens
from .loop import Conditioning

Floats = NDArray[np.float32]
Encoder = Callable[..., Mapping[str, Floats]]  # takes input_ids, returns its outputs by name

AESTHETIC = (6.0, 2.5)  # scores out of ten of the prompt and the negative prompt, the defaults of diffusers
MAX_CHUNKS = 32  # of a prompt: 2400 tokens. Attention over more takes gigabytes


def tokenizers_of(plan: Plan) -> dict[str, ClipTokenizer]:
    """Return the tokenizer of each text encoder."""
    lengths = {name: int(plan.components[name].inputs[0].dims[1]) for name in plan.tokenizers}
    return {name: ClipTokenizer(folder, lengths[name]) for name, folder in plan.tokenizers.items()}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Outputs of the text encoders for one prompt: states [chunks * T, W], and the pooled state [P] if it is used."""

    states: Floats
    pooled: Floats | None


def condition(
    plan: Plan,
    tokenizers: Mapping[str, ClipTokenizer],
    encoder: Callable[[str], Encoder],
    job: Job,
    cache: LruCache[Encoded] | None = None,
) -> tuple[Conditioning, tuple[str, ...]]:
    """Run every text encoder once on each different prompt. Return the batch's conditioning, and notes for the report.

    `cache` contains prompts that the same weights encoded before.
    """
    if not plan.prompting.states:
        return Conditioning(arrays={}, guidance_scale=job.guidance_scale, guided=False), ()
    # Only the prompt skips layers, as in diffusers; in AUTOMATIC1111's web UI the negative prompt does so too.
    negatives = [(text, None) for text in job.negative_prompts] if job.guided else []
    texts: list[tuple[str | None, int | None]] = [*negatives, *((text, job.clip_skip) for text in job.prompts)]
    unique = list(dict.fromkeys((text, skip) for text, skip in texts if text is not None))
    tokens = tokens_of(plan, tokenizers, [text for text, _ in unique])
    skips = [skip for _, skip in unique]
    encoded = _encode_cached(plan, encoder, tokens, skips, LruCache(len(unique)) if cache is None else cache)
    # The row after the prompts is zeros: the absent negative prompt of models that were trained with zeros.
    places = {text_and_skip: i for i, text_and_skip in enumerate(unique)}
    rows = [len(unique) if text is None else places[text, skip] for text, skip in texts]
    arrays = {"encoder_hidden_states": _rows(np.stack([e.states for e in encoded]), rows)}
    pooled = [e.pooled for e in encoded if e.pooled is not None]
    if pooled:
        arrays["text_embeds"] = _rows(np.stack(pooled), rows)
    arrays |= family_inputs(plan, job, len(texts))
    conditioning = Conditioning(
        arrays=arrays, guidance_scale=job.guidance_scale, guided=job.guided, guidance_rescale=job.guidance_rescale
    )
    return conditioning, notes_of(job, tokens)


def _encode_cached(
    plan: Plan,
    encoder: Callable[[str], Encoder],
    tokens: Mapping[str, Tokens],
    skips: Sequence[int | None],
    cache: LruCache[Encoded],
) -> list[Encoded]:
    """Return each prompt's encoding without its last `skips` layers. Encode only what the cache lacks."""
    keys = [
        (skip, *((n, t.ids[i].tobytes(), t.weights[i].tobytes()) for n, t in tokens.items()))
        for i, skip in enumerate(skips)
    ]
    results = [cache.get(key) for key in keys]
    missing = [i for i, each in enumerate(results) if each is None]
    for i in missing:  # one by one: a backend that compiles for exact sizes then compiles for one size only
        prompt = {name: t.of([i]) for name, t in tokens.items()}
        outputs = {name: _encode(name, encoder(name), t) for name, t in prompt.items()}
        states = np.concatenate(
            [_weigh(outputs[name][skipping(output, skips[i])], prompt[name]) for name, output in plan.prompting.states],
            axis=-1,
        )
        pooled = None
        if plan.prompting.pooled is not None:
            name, output = plan.prompting.pooled
            pooled = outputs[name][output][0, 0].copy()
        results[i] = encoded = Encoded(states=states[0].copy(), pooled=pooled)
        cache.put(keys[i], encoded)
    return [each for each in results if each is not None]


def tokens_of(plan: Plan, tokenizers: Mapping[str, ClipTokenizer], prompts: list[str]) -> dict[str, Tokens]:
    """Tokenize for every text encoder, in chunks of its length. All get the same number of chunks, to join states."""
    states = next(b for b in plan.components["unet"].inputs if b.name == "encoder_hidden_states")
    limit = 1 if isinstance(states.dims[1], int) else MAX_CHUNKS  # a network may accept one chunk only
    tokens = {name: tokenizer(prompts, limit) for name, tokenizer in tokenizers.items()}
    chunks = max(t.ids.shape[1] for t in tokens.values())
    return {name: t.with_chunks(chunks, tokenizers[name].empty) for name, t in tokens.items()}


def _encode(name: str, encoder: Encoder, tokens: Tokens) -> dict[str, Floats]:
    """Return all outputs of a text encoder for all chunks.  # [B, chunks, ...]"""
    count, chunks, length = tokens.ids.shape
    outputs = encoder(input_ids=tokens.ids.reshape(count * chunks, length))
    for array in outputs.values():
        if not np.isfinite(array).all():
            raise CalotypeError(
                f"the {name.replace('_', ' ')} returned numbers that are not finite: its weights are damaged."
            )
    return {output: array.reshape(count, chunks, *array.shape[1:]) for output, array in outputs.items()}


def _weigh(states: Floats, tokens: Tokens) -> Floats:
    """Scale each token's state by its weight and keep each prompt's mean; join the chunks.

    AUTOMATIC1111's web UI does the same, and so does diffusers' community pipeline lpw_stable_diffusion.
    # [B, chunks, T, W] -> [B, chunks * T, W]
    """
    count, chunks, length, width = states.shape
    if (tokens.weights != 1).any():
        weighted = states * tokens.weights[..., None]
        before, after = (each.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64) for each in (states, weighted))
        has_weights = (tokens.weights != 1).any(axis=(1, 2))[:, None, None, None]
        states = np.where(has_weights, weighted * (before / after), states).astype(np.float32)
    return states.reshape(count, chunks * length, width)


def _rows(array: Floats, rows: list[int]) -> Floats:
    """Return the rows of a batch; the row after the last is zeros.  # [B, ...]"""
    return np.concatenate([array, np.zeros_like(array[:1])])[rows]


def family_inputs(plan: Plan, job: Job, rows: int) -> dict[str, Floats]:
    """Return the inputs of some families: SDXL's `time_ids`, and the guidance embedding of a distilled U-Net."""
    arrays = {} if plan.prompting.pooled is None else {"time_ids": _time_ids(plan, job)}
    for binding in plan.components["unet"].inputs:
        if binding.name == "timestep_cond":
            embedding = guidance_embedding(job.guidance_scale, int(binding.dims[1]))
            arrays[binding.name] = np.tile(embedding, (rows, 1))
    return arrays


def _time_ids(plan: Plan, job: Job) -> Floats:
    """Return SDXL's micro-conditioning: original size, crop corner and target size (arXiv 2307.01952).

    The values are diffusers' defaults: an image that was neither scaled nor cropped. The refiner takes an aesthetic
    score in place of the target size, a lower one for the negative prompt.  # [2B, 6] or [2B, 5]
    """
    count = len(job.prompts)
    wide = next(b.dims[1] for b in plan.components["unet"].inputs if b.name == "time_ids")
    ends = ((AESTHETIC[0],), (AESTHETIC[1],)) if wide == 5 else ((job.height, job.width),) * 2
    positive, negative = ([job.height, job.width, 0, 0, *end] for end in ends)
    return np.array([*([negative] * count if job.guided else []), *[positive] * count], dtype=np.float32)


def notes_of(job: Job, tokens: Mapping[str, Tokens]) -> tuple[str, ...]:
    """Return the notes of a report about prompts: text that was left out, and a negative prompt without effect."""
    left_out = dict.fromkeys(
        (t.ids.shape[1] * (t.ids.shape[2] - 2), d) for t in tokens.values() for d in t.dropped if d
    )
    notes = [f"the prompt is too long for {length} tokens; left out: {_short(text)}" for length, text in left_out]
    if not job.guided and any(job.negative_prompts):
        notes.append("the negative prompt has no effect: it needs guidance_scale > 1")
    return tuple(notes)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:150]!r} ... {text[-30:]!r} ({len(text.split())} words)"
