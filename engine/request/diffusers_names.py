"""Names that diffusers' pipelines have and Calotype does not: each is refused, with what to use in its place.

Knows names alone; what they stand for here is behind `load` and `Pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import NoAttributeError
from ..errors.validation import nearest

_PRECISION = "A plan has its precision: calotype build MODEL -o PLAN --precision bf16."
_NO_CHECKER = "Leave it out: Calotype loads no safety checker."
_SCHEDULER = "Use scheduler= of a call: pipe(prompt, scheduler='euler')."
_LORA = "Use set_lora(...)."
_BACKEND = "Use load(MODEL, backend=...)."
_MEMORY = "Leave it out: the pipeline chooses slices and tiles by the memory that is free."
_MODEL = "Load a model that has it: load(FOLDER)."

# Arguments of from_pretrained.
OF_LOADING = {
    **dict.fromkeys(("torch_dtype", "dtype", "precision"), _PRECISION),
    **dict.fromkeys(("device", "device_map", "provider", "providers"), "Use backend=, such as backend='eager'."),
    **dict.fromkeys(("safety_checker", "requires_safety_checker", "feature_extractor"), _NO_CHECKER),
    "scheduler": _SCHEDULER,
    "local_files_only": "Use offline=True.",
    "pretrained_model_name_or_path": "Use model=.",
    "use_safetensors": "Leave it out: weights are read from .safetensors alone.",
    "variant": "Leave it out: fp16 files are read where a model has no others.",
}

# Attributes and methods of a pipeline.
OF_PIPELINES = {
    "scheduler": f"{_SCHEDULER} The model's own is plan.scheduler.",
    **dict.fromkeys(("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora", "lora"), _LORA),
    **dict.fromkeys(("set_adapters", "delete_adapters", "enable_lora", "disable_lora"), _LORA),
    **dict.fromkeys(("get_active_adapters", "get_list_adapters"), "Use loras."),
    **dict.fromkeys(("to", "cuda", "cpu", "device"), _BACKEND),
    **dict.fromkeys(("enable_model_cpu_offload", "enable_sequential_cpu_offload"), _BACKEND),
    **dict.fromkeys(("dtype", "half"), _PRECISION),
    **dict.fromkeys(("safety_checker", "feature_extractor"), _NO_CHECKER),
    **dict.fromkeys(("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"), _MODEL),
    **dict.fromkeys(("enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"), _MEMORY),
    "enable_xformers_memory_efficient_attention": _MEMORY,
    "vae": "Use load(MODEL, vae=...).",
    "controlnet": "Use load(MODEL, controlnet=...).",
    "load_textual_inversion": "Use load(MODEL, textual_inversion=...).",
    "from_pretrained": "Use calotype.load(MODEL).",
    "from_single_file": "Use calotype.load(FILE).",
    "save_pretrained": "Use calotype build MODEL -o PLAN.",
    "set_progress_bar_config": "Use stream(...), which gives an event for each step.",
}


class KnownAttributes:
    """A base class whose objects have no other public attributes than their class declares.

    Setting another raises `NoAttributeError`, since nothing would read it. Names that begin with "_" are free.
    """

    if not TYPE_CHECKING:  # a type checker would take every name for known

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not _may_be_set(type(self), name):
                raise _refusal(type(self), name)
            super().__setattr__(name, value)

        def __getattr__(self, name: str) -> Any:
            raise _refusal(type(self), name)


def _may_be_set(kind: type, name: str) -> bool:
    """Is it a method, or an attribute that the class declares? A property is neither."""
    return callable(getattr(kind, name, None)) or name in _declared(kind)


def _declared(kind: type) -> set[str]:
    return {name for each in kind.__mro__ for name in vars(each).get("__annotations__", {})}


def _refusal(kind: type, name: str) -> NoAttributeError:
    if isinstance(getattr(kind, name, None), property):
        return NoAttributeError(f"{name} of a {kind.__name__} cannot be set. {OF_PIPELINES.get(f'set_{name}', _LORA)}")
    public = sorted(each for each in {*dir(kind), *_declared(kind)} if not each.startswith("_"))
    return NoAttributeError(
        f"a {kind.__name__} has no attribute {name!r}. {OF_PIPELINES.get(name) or nearest(name, public)}"
    )
