"""Names of diffusers: those of arguments that Calotype names otherwise, and those that it lacks.

A call takes the first ones (`ALIASES`, which the documentation shows). For the others, an error names the replacement.
Knows names only; `load` and `Pipeline` implement the replacements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NoAttributeError
from ..errors.validation import nearest

_PRECISION = "Use load(MODEL, precision='fp16')."
_NO_CHECKER = "Omit it: Calotype loads no safety checker."
_SCHEDULER = "Pass scheduler= in a call: pipe(prompt, scheduler='euler')."
_LORA = "Use set_lora(...)."
_BACKEND = "Use load(MODEL, backend=...)."
_MEMORY = "Omit it: the pipeline chooses slices and tiles by the free memory."
_MODEL = "Load a model that contains it: load(FOLDER)."


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of an argument.

    Attributes:
        name: the argument's name in `Request`.
        read: turns the value that diffusers takes into ours.
    """

    name: str
    read: Callable[[Any], Any] = lambda value: value


def _lora_scale(value: Any) -> Any:
    """Return the scale in `cross_attention_kwargs`. Raises `InputError` for other keys."""
    if value is None:
        return 1.0
    if not isinstance(value, Mapping) or not value.keys() <= {"scale"}:
        message = (
            'cross_attention_kwargs must be {"scale": NUMBER}, the scale of LoRAs, and {"ip_adapter_masks": MASKS}; '
            f"got {value!r:.80}."
        )
        raise InputError(message, argument="cross_attention_kwargs", got=value)
    return value.get("scale", 1.0)


def _with_masks(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call's arguments with the masks in `cross_attention_kwargs` as `ip_adapter_mask`."""
    options = arguments.get("cross_attention_kwargs")
    if not isinstance(options, Mapping) or "ip_adapter_masks" not in options:
        return arguments
    if "ip_adapter_mask" in arguments:
        message = "ip_adapter_masks is another name of ip_adapter_mask, and the call has both. Pass only one of them."
        raise InputError(message, argument="ip_adapter_mask")
    rest = {name: value for name, value in options.items() if name != "ip_adapter_masks"}
    masks = {"ip_adapter_mask": options["ip_adapter_masks"]}
    kept = {name: value for name, value in arguments.items() if name != "cross_attention_kwargs"}
    return {**kept, **masks, **({"cross_attention_kwargs": rest} if rest else {})}


ALIASES: Mapping[str, Alias] = {
    "num_inference_steps": Alias(name="steps"),
    "num_images_per_prompt": Alias(name="num_images"),
    "num_videos_per_prompt": Alias(name="num_images"),
    "num_frames": Alias(name="frames"),
    "conditioning_frames": Alias(name="control_image"),
    "cross_attention_kwargs": Alias(name="lora_scale", read=_lora_scale),
}


def with_our_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by the names of `Request`. Raises `InputError` if a call has both names of one."""
    arguments = _with_masks(arguments)
    ours = {name: value for name, value in arguments.items() if name not in ALIASES}
    for theirs in arguments.keys() & ALIASES.keys():
        alias = ALIASES[theirs]
        if alias.name in ours:
            message = f"{theirs} is another name of {alias.name}, and the call has both. Pass only one of them."
            raise InputError(message, argument=theirs, got=arguments[theirs])
        ours[alias.name] = alias.read(arguments[theirs])
    return ours


# Arguments of `from_pretrained`.
OF_LOADING = {
    **dict.fromkeys(("torch_dtype", "dtype"), "Use precision=, such as precision='fp16'."),
    **dict.fromkeys(("device", "device_map", "provider", "providers"), "Use backend=, such as backend='eager'."),
    **dict.fromkeys(("safety_checker", "requires_safety_checker", "feature_extractor"), _NO_CHECKER),
    "scheduler": _SCHEDULER,
    "local_files_only": "Use offline=True.",
    "pretrained_model_name_or_path": "Use model=.",
    "use_safetensors": "Omit it: weights are read from .safetensors files only.",
    "variant": "Omit it: fp16 files are read if a model has no others.",
}

# Arguments of a call, besides those in `ALIASES`.
OF_CALLS = {
    "return_dict": "Omit it: a call returns a Result, which has .images.",
    **dict.fromkeys(("callback", "callback_steps"), "Use callback_on_step_end=."),
    **dict.fromkeys(("prompt_3", "max_sequence_length"), "Omit it: the models of Stable Diffusion have no T5 encoder."),
    "masked_image_latents": "Use image= and mask_image=.",
    "guess_mode": "Use guidance_scale=1 with a control_image.",
}

# Attributes and methods of a pipeline.
OF_PIPELINES = {
    "scheduler": f"{_SCHEDULER} The default is plan.scheduler.",
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
    "adapter": "Use load(MODEL, t2i_adapter=...).",
    "motion_adapter": "Use load(MODEL, motion_adapter=...).",
    "load_ip_adapter": "Use load(MODEL, ip_adapter=FILE).",
    "unload_ip_adapter": "Omit it: a call without ip_adapter_image does not use the adapters.",
    "set_ip_adapter_scale": "Pass ip_adapter_scale= in a call: pipe(prompt, ip_adapter_scale=0.6).",
    "image_encoder": "Use load(MODEL, image_encoder=...).",
    "load_textual_inversion": "Use load(MODEL, textual_inversion=...).",
    "from_pretrained": "Use calotype.load(MODEL).",
    "from_single_file": "Use calotype.load(FILE).",
    "save_pretrained": "Use calotype build MODEL -o PLAN.",
    "set_progress_bar_config": "Use pipe(prompt, progress=True).",
}


class KnownAttributes:
    """Base class of objects with a fixed set of public attributes.

    Setting another attribute raises `NoAttributeError`, since nothing would read it. Names with a leading "_" are free.
    """

    if not TYPE_CHECKING:  # with them, a type checker would accept every name

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not _may_be_set(type(self), name):
                raise _refusal(type(self), name)
            super().__setattr__(name, value)

        def __getattr__(self, name: str) -> Any:
            raise _refusal(type(self), name)


def _may_be_set(kind: type, name: str) -> bool:
    """Return whether the name is a method or a declared attribute. A property is neither."""
    return callable(getattr(kind, name, None)) or name in _declared(kind)


def _declared(kind: type) -> set[str]:
    return {name for each in kind.__mro__ for name in vars(each).get("__annotations__", {})}


def _refusal(kind: type, name: str) -> NoAttributeError:
    if isinstance(getattr(kind, name, None), property):
        fix = OF_PIPELINES.get(f"set_{name}", _LORA)
        return NoAttributeError(f"cannot set {name} of a {kind.__name__}. {fix}", name=name)
    public = sorted(each for each in {*dir(kind), *_declared(kind)} if not each.startswith("_"))
    return NoAttributeError(
        f"a {kind.__name__} has no attribute {name!r}. {OF_PIPELINES.get(name) or nearest(name, public)}", name=name
    )
