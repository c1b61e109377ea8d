"""The text in which AUTOMATIC1111's web UI stores the settings of an image, which many programs read.

    PROMPT
    Negative prompt: NEGATIVE PROMPT
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: NAME

Knows the text and the names in it. Does not know files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..errors import SamplerError
from ..errors.printable import printable
from ..sampling.schedulers import SchedulerSpec, spec_from
from ..stages.generation import Generation

# Calotype's scheduler -> the web UI's sampler. Others keep their name. A suffix is the web UI's "Schedule type".
SAMPLERS: Mapping[str, str] = {
    **{"ddim": "DDIM", "ddpm": "DDPM", "deis": "DEIS", "lcm": "LCM", "lms": "LMS", "pndm": "PLMS", "tcd": "TCD"},
    **{"dpm++2m": "DPM++ 2M", "dpm++2m-sde": "DPM++ 2M SDE", "dpm++sde": "DPM++ SDE", "unipc": "UniPC"},
    **{"euler": "Euler", "euler-a": "Euler a", "heun": "Heun", "kdpm2": "DPM2", "kdpm2-a": "DPM2 a"},
}
_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
_PLAIN = ("", "Uniform", "Normal")  # schedules that the model's own stands for
# What "Automatic" stands for in the web UI, since its version 1.9.
_AUTOMATIC = {
    **dict.fromkeys(("DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a"), "Karras"),
    "DPM++ 2M SDE": "Exponential",
}
_ITEM = re.compile(r'(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LORA = re.compile(r"<lora:([^<>:]{1,200})(?::([^<>:]{0,20}))?(?::[^<>]{0,100})?>")
_LONGEST = 200_000  # characters; a fifth of them in the last line
_NEGATIVE = "Negative prompt:"
_ELSEWHERE = {"Version", "Model hash", "Hashes", "Lora hashes", "TI hashes", "VAE hash", "Model", "Size"}
_MASKS = ("Mask blur", "Mask mode", "Inpaint area")


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """Settings of an image of the web UI.

    Attributes:
        arguments: the arguments of a call.
        model: the model's name, without a folder; None if the text has none.
        loras: the name and weight of each LoRA, which the prompt named.
        from_image, from_mask: whether the image was generated from an input image, and from a mask.
        rng: where its noise was drawn: "CPU" as here, or "GPU" or "NV".
        not_taken: the settings without a counterpart, as "NAME VALUE".
    """

    arguments: Mapping[str, Any]
    model: str | None
    loras: tuple[tuple[str, float], ...]
    from_image: bool
    from_mask: bool
    rng: str
    not_taken: tuple[str, ...]


def infotext_of(call: Generation, i: int, model: str) -> str:
    """Return the text for image i of a call."""
    return to_infotext(call.request.arguments(i), call.spec, model)


def to_infotext(values: Mapping[str, Any], spec: SchedulerSpec, model: str) -> str:
    """Return the text for the arguments of one image, by their names in `Request`."""
    flags = [suffix for suffix in _SCHEDULES if spec.config.get(f"use_{suffix}_sigmas")]
    name = spec.name.removesuffix(f"-{flags[0]}") if flags else spec.name
    name = _by_class(name) or name
    skip = values.get("clip_skip")
    items = {
        "Steps": values["steps"],
        "Sampler": SAMPLERS.get(name, name),
        "Schedule type": _SCHEDULES[flags[0]] if flags else None,
        "CFG scale": f"{values['guidance_scale']:g}",
        "Seed": values["seed"],
        "Size": f"{values['width']}x{values['height']}",
        "Model": re.sub(r"\.(safetensors|ckpt|gguf)$", "", PurePath(model).name),
        "Denoising strength": values.get("strength") or values.get("hires_strength"),
        "Clip skip": skip and skip + 1,
        "Hires upscale": values.get("hires"),
        "Hires steps": values.get("hires_steps"),
        "Hires upscaler": values.get("hires_upscaler"),
        "Version": "Calotype",
    }
    negative = values.get("negative_prompt")
    lines = [values["prompt"], *([f"{_NEGATIVE} {negative}"] if negative else [])]
    return "\n".join(
        [*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in items.items() if value is not None)]
    )


def _by_class(name: str) -> str | None:
    """Return the scheduler's name for a class of diffusers, which a model's own scheduler has as its name."""
    if not name.endswith("Scheduler"):
        return None
    return next((each for each in SAMPLERS if spec_from(each).class_name == name), None)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def parse_infotext(text: str) -> Infotext:
    """Read the text. Raises `ValueError` for a broken number, or if it is no such text."""
    *lines, last = text.strip().split("\n")
    if max(len(text), 5 * len(last)) > _LONGEST:
        raise ValueError(f"its parameters have {len(text)} characters; at most {_LONGEST} are read")
    items = {key.strip(): _unquoted(value.strip()) for key, value in _ITEM.findall(last)}
    if "Steps" not in items:
        raise ValueError("the last line of its parameters has no Steps")
    prompt, has_negative, negative = "\n".join(["", *lines]).partition(f"\n{_NEGATIVE}")
    loras = tuple((name, _number(name, weight or "1")) for name, weight in _LORA.findall(prompt))
    rest = {key: value for key, value in items.items() if key not in _ELSEWHERE}
    hires, lost = _hires(rest)
    strength = None if hires else rest.pop("Denoising strength", None)
    arguments: dict[str, Any] = {
        "prompt": _LORA.sub("", prompt).strip(),
        **({"negative_prompt": negative.strip()} if has_negative else {}),
        **({} if strength is None else {"strength": _number("Denoising strength", strength)}),
        **_size(items.get("Size")),
        **hires,
    }
    for key, name, kind in (("Steps", "steps", int), ("Seed", "seed", int), ("CFG scale", "guidance_scale", float)):
        if key in rest:
            arguments[name] = kind(_number(key, rest.pop(key), kind))
    if (skip := rest.pop("Clip skip", None)) is not None:
        arguments["clip_skip"] = _number("Clip skip", skip, int) - 1
    scheduler, not_taken = scheduler_of(rest.pop("Sampler", ""), rest.pop("Schedule type", ""))
    if scheduler is not None:
        arguments["scheduler"] = scheduler
    rng = rest.pop("RNG", "GPU")
    masked = [key for key in _MASKS if rest.pop(key, None) is not None]
    return Infotext(
        arguments=arguments,
        model=items.get("Model") or items.get("Model hash"),
        loras=loras,
        from_image=strength is not None,
        from_mask=bool(masked),
        rng=rng,
        not_taken=(*not_taken, *lost, *(f"{key} {value:.60}" for key, value in rest.items())),
    )


def scheduler_of(sampler: str, schedule: str) -> tuple[str | None, list[str]]:
    """Return the name of the scheduler for a sampler and a "Schedule type" of the web UI, and what has no counterpart.

    The name is None if there is no such sampler.
    """
    if not sampler:
        return None, []
    suffix = _AUTOMATIC.get(sampler, "") if schedule == "Automatic" else "" if schedule in _PLAIN else schedule
    for name, lost in ((f"{sampler} {suffix}", []), (sampler, [f"Schedule type {schedule:.60}"])):
        try:
            return spec_from(name).name, lost
        except SamplerError:
            continue
    return None, [f"Sampler {sampler:.60}", *([f"Schedule type {schedule:.60}"] if schedule else [])]


def _hires(rest: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Take the settings of the second pass out of `rest`. Return its arguments, and what has no counterpart."""
    if "Hires upscale" not in rest:
        return {}, []
    arguments: dict[str, Any] = {"hires": _number("Hires upscale", rest.pop("Hires upscale"))}
    if strength := rest.pop("Denoising strength", None):
        arguments["hires_strength"] = _number("Denoising strength", strength)
    steps = _number("Hires steps", rest.pop("Hires steps", "0"), int)  # 0: as many as the first pass
    arguments["hires_steps"] = steps or _number("Steps", rest["Steps"], int)
    upscaler = rest.pop("Hires upscaler", "Latent")
    known = next((name for name in ("latent", "lanczos") if upscaler.lower().startswith(name)), None)
    return arguments | ({"hires_upscaler": known} if known else {}), [] if known else [f"Hires upscaler {upscaler:.60}"]


def _size(size: str | None) -> dict[str, int]:
    if size is None:
        return {}
    width, _, height = size.partition("x")
    return {"width": _number("Size", width, int), "height": _number("Size", height, int)}


def _number(name: str, text: str, kind: Any = float) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} is {text[:40]!r}, not a number") from None


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value


def notes_of(path: PurePath, info: Infotext) -> Iterator[str]:
    """Yield what a reader of the image should know: what was not taken, and why the image differs."""
    if info.not_taken:
        yield printable(f"{path}: without a counterpart, and not taken: {', '.join(info.not_taken)[:2000]}")
    if info.rng != "CPU":
        yield f"{path}: its noise was drawn on a GPU, so the image will differ"
