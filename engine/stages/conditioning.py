"""From prompts to the arrays that steer the network: text through its encoders, and what a family adds to it.

Knows which outputs of which encoders are meant from the plan's `Prompting`; knows nothing of steps or backends.
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
Encoder = Callable[..., Mapping[str, Floats]]  # takes input_ids, gives its outputs by name

AESTHETIC = (6.0, 2.5)  # scores out of ten, as diffusers has them: with the prompt, and without
MAX_CHUNKS = 32  # of a prompt: 2400 tokens. Attention over more would take gigabytes


def tokenizers_of(plan: Plan) -> dict[str, ClipTokenizer]:
    """The tokenizer of each text encoder."""
    lengths = {name: int(plan.components[name].inputs[0].dims[1]) for name in plan.tokenizers}
    return {name: ClipTokenizer(folder, lengths[name]) for name, folder in plan.tokenizers.items()}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the text encoders make of one prompt: states [chunks * T, W], and the pooled one [P] where it is used."""

    states: Floats
    pooled: Floats | None


def condition(
    plan: Plan,
    tokenizers: Mapping[str, ClipTokenizer],
    encoder: Callable[[str], Encoder],
    job: Job,
    memory: LruCache[Encoded] | None = None,
) -> tuple[Conditioning, tuple[str, ...]]:
    """Run every text encoder once on each different prompt; what steers the job's batch, and notes for its report.

    `memory` holds what they made of prompts before: of the same weights.
    """
    if not plan.prompting.states:
        nothing = Conditioning(arrays={}, guidance_scale=job.guidance_scale, guided=False)
        return nothing, ()
    # Layers are skipped for what is wanted alone, as in diffusers; AUTOMATIC1111's web UI does it for both.
    without = [(text, None) for text in job.negative_prompts] if job.guided else []
    texts: list[tuple[str | None, int | None]] = [*without, *((text, job.clip_skip) for text in job.prompts)]
    unique = list(dict.fromkeys((text, skip) for text, skip in texts if text is not None))
    tokens = tokens_of(plan, tokenizers, [text for text, _ in unique])
    skips = [skip for _, skip in unique]
    encoded = _remembered(plan, encoder, tokens, skips, LruCache(len(unique)) if memory is None else memory)
    # The row past the prompts is zeros: a negative prompt that was not said, where the model was trained so.
    places = {said: i for i, said in enumerate(unique)}
    rows = [len(unique) if text is None else places[text, skip] for text, skip in texts]
    arrays = {"encoder_hidden_states": _rows(np.stack([e.states for e in encoded]), rows)}
    pooled = [e.pooled for e in encoded if e.pooled is not None]
    if pooled:
        arrays["text_embeds"] = _rows(np.stack(pooled), rows)
        arrays["time_ids"] = time_ids_of(plan, job)
    for binding in plan.components["unet"].inputs:
        if binding.name == "timestep_cond":
            embedding = guidance_embedding(job.guidance_scale, int(binding.dims[1]))
            arrays[binding.name] = np.tile(embedding, (len(texts), 1))
    conditioning = Conditioning(
        arrays=arrays, guidance_scale=job.guidance_scale, guided=job.guided, guidance_rescale=job.guidance_rescale
    )
    return conditioning, notes_of(job, tokens)


def _remembered(
    plan: Plan,
    encoder: Callable[[str], Encoder],
    tokens: Mapping[str, Tokens],
    skips: Sequence[int | None],
    memory: LruCache[Encoded],
) -> list[Encoded]:
    """Each prompt's, so many layers before the end, encoding those alone that the memory does not hold."""
    keys = [
        (skip, *((n, t.ids[i].tobytes(), t.weights[i].tobytes()) for n, t in tokens.items()))
        for i, skip in enumerate(skips)
    ]
    found = [memory.get(key) for key in keys]
    missing = [i for i, each in enumerate(found) if each is None]
    for i in missing:  # one by one: a backend that compiles for exact sizes then has one size to compile for
        lacking = {name: t.of([i]) for name, t in tokens.items()}
        outputs = {name: _encoded(name, encoder(name), t) for name, t in lacking.items()}
        states = np.concatenate(
            [
                _weighed(outputs[name][skipping(output, skips[i])], lacking[name])
                for name, output in plan.prompting.states
            ],
            axis=-1,
        )
        pooled = None
        if plan.prompting.pooled is not None:
            name, output = plan.prompting.pooled
            pooled = outputs[name][output][0, 0].copy()
        found[i] = made = Encoded(states=states[0].copy(), pooled=pooled)
        memory.put(keys[i], made)
    return [each for each in found if each is not None]


def tokens_of(plan: Plan, tokenizers: Mapping[str, ClipTokenizer], prompts: list[str]) -> dict[str, Tokens]:
    """Of every text encoder, in chunks of its length; as many chunks for each, as their states stand side by side."""
    states = next(b for b in plan.components["unet"].inputs if b.name == "encoder_hidden_states")
    most = 1 if isinstance(states.dims[1], int) else MAX_CHUNKS  # a network may have been made for one chunk alone
    tokens = {name: tokenizer(prompts, most) for name, tokenizer in tokenizers.items()}
    chunks = max(t.ids.shape[1] for t in tokens.values())
    return {name: t.with_chunks(chunks, tokenizers[name].empty) for name, t in tokens.items()}


def _encoded(name: str, encoder: Encoder, tokens: Tokens) -> dict[str, Floats]:
    """Every output for every chunk.  # [B, chunks, ...]"""
    count, chunks, length = tokens.ids.shape
    outputs = encoder(input_ids=tokens.ids.reshape(count * chunks, length))
    for array in outputs.values():
        if not np.isfinite(array).all():
            told = name.replace("_", " ")
            raise CalotypeError(f"the {told} gave numbers that are not finite: its weights are damaged.")
    return {output: array.reshape(count, chunks, *array.shape[1:]) for output, array in outputs.items()}


def _weighed(states: Floats, tokens: Tokens) -> Floats:
    """Each token's state as often as it counts, each prompt's mean as it was; chunks one after the other.

    As AUTOMATIC1111's web UI does, and diffusers' community pipeline lpw_stable_diffusion after it.
    # [B, chunks, T, W] -> [B, chunks * T, W]
    """
    count, chunks, length, width = states.shape
    if (tokens.weights != 1).any():
        heavier = states * tokens.weights[..., None]
        before, after = (each.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64) for each in (states, heavier))
        some = (tokens.weights != 1).any(axis=(1, 2))[:, None, None, None]
        states = np.where(some, heavier * (before / after), states).astype(np.float32)
    return states.reshape(count, chunks * length, width)


def _rows(array: Floats, rows: list[int]) -> Floats:
    """That of each text of the batch; zeros for the row past the last.  # [B, ...]"""
    return np.concatenate([array, np.zeros_like(array[:1])])[rows]


def time_ids_of(plan: Plan, job: Job) -> Floats:
    """SDXL's micro-conditioning: the size before scaling, the crop's corner and the size wanted (arXiv 2307.01952).

    As diffusers, unless told otherwise: a picture that was neither scaled nor cropped. The refiner is told how much
    people would like it in place of the size wanted, less of what to steer away from.  # [2B, 6] or [2B, 5]
    """
    count = len(job.prompts)
    wide = next(b.dims[1] for b in plan.components["unet"].inputs if b.name == "time_ids")
    ends = ((AESTHETIC[0],), (AESTHETIC[1],)) if wide == 5 else ((job.height, job.width),) * 2
    given, without = ([job.height, job.width, 0, 0, *end] for end in ends)
    return np.array([*([without] * count if job.guided else []), *[given] * count], dtype=np.float32)


def notes_of(job: Job, tokens: Mapping[str, Tokens]) -> tuple[str, ...]:
    """What a report says of the prompts: what was left out, and what has no part."""
    left_out = dict.fromkeys(
        (t.ids.shape[1] * (t.ids.shape[2] - 2), d) for t in tokens.values() for d in t.dropped if d
    )
    notes = [f"the prompt is too long for {length} tokens; left out: {_short(text)}" for length, text in left_out]
    if not job.guided and any(job.negative_prompts):
        notes.append("the negative prompt has no part in the picture: it needs guidance_scale > 1")
    return tuple(notes)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:150]!r} ... {text[-30:]!r} ({len(text.split())} words)"
