"""The body of a request as a `JobRequest`: fields that clients may set, the type of each, and images from base64.

Fields outside of this table are refused. In a Python call, some of them would be paths of files, or functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from ....errors import InputError
from ....errors.validation import check_float, check_int, check_names
from ....request.arguments.video import VideoArguments
from ....request.diffusers_names import ALIASES, OF_CALLS, with_our_names
from ...job import JobRequest

_CLIPS = "A server makes images. For clips, use calotype.load or calotype generate."
Kind = Literal["text", "texts", "number", "numbers", "flag", "images"]
FIELDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "region_prompts", "pag_applied_layers"), "texts"
    ),
    **dict.fromkeys(("calls_from", "guidance_method", "scheduler", "hires_upscaler", "style_prompt"), "text"),
    **dict.fromkeys(("clip_skip", "aesthetic_score", "negative_aesthetic_score"), "number"),
    **dict.fromkeys(("steps", "eta", "calls", "min_psnr", "guidance_scale", "guidance_rescale"), "number"),
    **dict.fromkeys(("apg_eta", "apg_momentum", "apg_rescale", "cache_interval", "lora_scale"), "number"),
    **dict.fromkeys(("padding_mask_crop", "image_guidance_scale", "noise_level", "strength"), "number"),
    **dict.fromkeys(("denoising_start", "denoising_end"), "number"),
    **dict.fromkeys(("hires", "hires_strength", "hires_steps", "width", "height", "num_images"), "number"),
    **dict.fromkeys(("original_size", "target_size", "crops_coords_top_left"), "numbers"),
    **dict.fromkeys(("negative_original_size", "negative_target_size"), "numbers"),
    **dict.fromkeys(("negative_crops_coords_top_left", "timesteps", "sigmas", "guidance_interval", "seed"), "numbers"),
    **dict.fromkeys(("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"), "numbers"),
    **dict.fromkeys(("image", "mask_image", "control_image", "depth_map", "adapter_image", "region_masks"), "images"),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_mask", "style_image"), "images"),
    "ip_adapter_scale": "numbers",
    **dict.fromkeys(("adapter_conditioning_scale", "control_mode"), "numbers"),
    **dict.fromkeys(("adapter_conditioning_factor", "region_strength", "pag_scale", "pag_adaptive_scale"), "number"),
    **dict.fromkeys(("soft_mask", "style_aligned"), "flag"),
}
# Other names of these fields, which diffusers' pipelines use.
OTHER_NAMES = {name: alias for name, alias in ALIASES.items() if alias.name != "frames"}
# Fields of a Python call that a client has no use for, or must not set.
REFUSED = {
    **{each.name: _CLIPS for each in dataclasses.fields(VideoArguments)},
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), "Pass prompt."),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), "Pass prompt."),
    **dict.fromkeys(("generator", "latents"), "Pass seed."),
    "ip_adapter_image_embeds": "Pass ip_adapter_image.",
    **dict.fromkeys(("callback_on_step_end", "callback_on_step_end_tensor_inputs"), "Read the job's events."),
    "output_type": "The service returns files of images.",
    "progress": "Read the job's events.",
}
OWN = ("model", "loras", "priority", "timeout_s", "preview_every", "cancel_on_disconnect")
UPSCALERS = ("latent", "lanczos")
_MAX_LIST, _MAX_LORAS = 1001, 16
_HIGHEST_PRIORITY = 100


def job_from(body: Mapping[str, Any], image: Callable[[Any, str], Image.Image]) -> JobRequest:
    """Return the job that a body describes, without an owner.

    Args:
        body: Fields of a call, by our names or those of diffusers, and those of `OWN`.
        image: Decodes an image; gets the value and the field's name.

    Raises:
        InputError: A field is unknown, or has a value of another type.
    """
    own = {name: body[name] for name in OWN if body.get(name) is not None}
    fields = {name: value for name, value in body.items() if name not in OWN and value is not None}
    check_names(fields, [*FIELDS, *OTHER_NAMES, *OWN], OF_CALLS | REFUSED | {"num_frames": _CLIPS})
    arguments = {name: _value(name, value, image) for name, value in with_our_names(fields).items()}
    model, timeout = own.get("model"), own.get("timeout_s")
    return JobRequest(
        prompt=arguments.pop("prompt", None),
        arguments=arguments,
        model=None if model is None else _text("model", model),
        loras=loras_from(own.get("loras")),
        priority=check_int("priority", own.get("priority", 0), -_HIGHEST_PRIORITY, _HIGHEST_PRIORITY),
        timeout_s=None if timeout is None else check_float("timeout_s", timeout, math.inf),
        preview_every=check_int("preview_every", own.get("preview_every", 0), 0, 1000),
    )


def loras_from(value: Any) -> tuple[tuple[str, float], ...] | None:
    """Return LoRAs by their aliases, from a list of `{"name", "weight"}` or of names. Raises `InputError`."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MAX_LORAS:
        expected = f'a list of at most {_MAX_LORAS} {{"name", "weight"}}'
        raise InputError(f"loras must be {expected}, got {value!r:.80}.", argument="loras", expected=expected)
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in value]
    for entry in entries:
        if not isinstance(entry, dict) or not {"name"} <= entry.keys() <= {"name", "weight"}:
            message = f'an entry of loras must be {{"name", "weight"}}, got {entry!r:.80}.'
            raise InputError(message, argument="loras", expected='{"name", "weight"}')
    return tuple((_text("loras", e["name"]), check_float("loras", e.get("weight", 1.0), 10, low=-10)) for e in entries)


def loras_from_text(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return LoRAs from texts such as "ink" and "ink:0.8". Raises `InputError` for a weight that is not a number."""
    loras = []
    for name, sign, weight in (text.partition(":") for text in texts):
        try:
            number: Any = float(weight) if sign else 1.0
        except ValueError:
            number = weight
        loras.append((name, check_float("model", number, 10, low=-10)))
    return tuple(loras)


def _value(name: str, value: Any, image: Callable[[Any, str], Image.Image]) -> Any:
    kind = FIELDS[name]
    if kind == "images":
        several = isinstance(value, list)
        images = [image(each, name) for each in _short(name, value if several else [value])]
        return images if several else images[0]
    if kind == "flag":
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value
    if kind in ("texts", "numbers") and isinstance(value, list):
        return [_scalar(name, kind, each) for each in _short(name, value)]
    return _scalar(name, kind, value)


def _scalar(name: str, kind: Kind, value: Any) -> Any:
    if kind in ("text", "texts"):
        text = _text(name, value)
        if name == "hires_upscaler" and text not in UPSCALERS:
            raise _wrong(name, value, f"one of {', '.join(UPSCALERS)}")
        return text
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(name, value, "a number or a list of numbers" if kind == "numbers" else "a number")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def _short(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if len(values) > _MAX_LIST:
        raise _wrong(name, values, f"a list of at most {_MAX_LIST}")
    return values


def _wrong(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{name} must be {expected}, got {value!r:.80}.", argument=name, got=value, expected=expected)
