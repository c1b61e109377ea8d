"""From prompts to the arrays that steer the network: text through its encoders, and what a family adds to it.

Knows which outputs of which encoders are meant from the plan's `Prompting`; knows nothing of steps or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from calotype.errors import CalotypeError
from calotype.loop import Conditioning
from calotype.plan import Plan
from calotype.prompt import ClipTokenizer, Tokens
from calotype.request import Job

Floats = NDArray[np.float32]
Encoder = Callable[..., Mapping[str, Floats]]  # takes input_ids, gives its outputs by name


def tokenizers_of(plan: Plan) -> dict[str, ClipTokenizer]:
    """The tokenizer of each text encoder."""
    lengths = {name: int(plan.components[name].inputs[0].dims[1]) for name in plan.tokenizers}
    return {name: ClipTokenizer(folder, lengths[name]) for name, folder in plan.tokenizers.items()}


def condition(
    plan: Plan, tokenizers: Mapping[str, ClipTokenizer], encoder: Callable[[str], Encoder], job: Job
) -> tuple[Conditioning, tuple[str, ...]]:
    """Run every text encoder once on each different prompt; what steers the job's batch, and notes for its report."""
    guided = job.guided
    texts = (*job.negative_prompts, *job.prompts) if guided else job.prompts
    unique = list(dict.fromkeys(t for t in texts if t is not None))
    tokens = {name: tokenizer(unique) for name, tokenizer in tokenizers.items()}
    outputs = {name: encoder(name)(input_ids=t.ids) for name, t in tokens.items()}
    # The row past the prompts is zeros: a negative prompt that was not said, where the model was trained so.
    rows = [len(unique) if t is None else unique.index(t) for t in texts]
    prompting = plan.prompting
    states = np.concatenate([_rows(outputs, *pair, rows) for pair in prompting.states], axis=-1)
    arrays = {"encoder_hidden_states": states}
    if prompting.pooled is not None:
        arrays["text_embeds"] = _rows(outputs, *prompting.pooled, rows)
        arrays["time_ids"] = np.tile(_time_ids(job), (len(texts), 1))
    return Conditioning(arrays=arrays, guidance_scale=job.guidance_scale), _notes(job, tokens, guided)


def _rows(outputs: Mapping[str, Mapping[str, Floats]], component: str, output: str, rows: list[int]) -> Floats:
    """The output of each text of the batch; zeros for the row past the last.  # [B, ...]"""
    array = outputs[component][output]
    if not np.isfinite(array).all():
        told = component.replace("_", " ")
        raise CalotypeError(f"the {told} gave numbers that are not finite: its weights are damaged.")
    return np.concatenate([array, np.zeros_like(array[:1])])[rows]


def _time_ids(job: Job) -> Floats:
    """SDXL's micro-conditioning: the size before scaling, the crop's corner and the size wanted (arXiv 2307.01952).

    As diffusers, unless told otherwise: a picture that was neither scaled nor cropped.  # [6]
    """
    return np.array([job.height, job.width, 0, 0, job.height, job.width], dtype=np.float32)


def _notes(job: Job, tokens: Mapping[str, Tokens], guided: bool) -> tuple[str, ...]:
    left_out = dict.fromkeys((t.ids.shape[1], d) for t in tokens.values() for d in t.dropped if d)
    notes = [f"the prompt is too long for {length} tokens; left out: {dropped!r}" for length, dropped in left_out]
    if not guided and any(job.negative_prompts):
        notes.append("the negative prompt has no part in the picture: it needs guidance_scale > 1")
    return tuple(notes)
