"""The check of `callback_on_step_end`, and the names of its tensors. Runs nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any

from ..errors import InputError, SamplerError

# Diffusers' name of a tensor -> the U-Net's input. Under guidance, the unconditional half comes first.
CONDITIONING = {
    "prompt_embeds": "encoder_hidden_states",
    "add_text_embeds": "text_embeds",
    "add_time_ids": "time_ids",
}
NEGATIVE = "negative_prompt_embeds"
REASON = "callback_on_step_end works on the scheduler's latents"


def check_callback(callback: Any, names: Any, inputs: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that a callback takes. `inputs` are the U-Net's. Raises `InputError` and `SamplerError`."""
    if not callable(callback):
        message = f"callback_on_step_end must be a function, got {type(callback).__name__}."
        raise InputError(message, argument="callback_on_step_end", got=callback)
    names = getattr(callback, "tensor_inputs", names)  # of diffusers' PipelineCallback
    known = ["latents", *(name for name, ours in CONDITIONING.items() if ours in inputs)]
    known += [NEGATIVE] if "prompt_embeds" in known else []
    if isinstance(names, str) or not isinstance(names, (list, tuple)) or not set(map(str, names)) <= set(known):
        raise InputError(
            f"callback_on_step_end_tensor_inputs must be a list of {', '.join(known)}; got {names!r:.80}.",
            argument="callback_on_step_end_tensor_inputs",
            got=names,
        )
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SamplerError(
            f"callback_on_step_end runs the scheduler of diffusers, and {' and '.join(missing)} is not installed. Use "
            "pipe.stream(...), or pip install 'calotype[build]'."
        )
    return tuple(names)
