"""Limits of a job: its size, steps, count and prompt. A limit is checked before the engine takes the job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from PIL import Image

from ....errors import InputError
from ...job import JobRequest
from ...service_settings import ServiceSettings


def check_limits(job: JobRequest, settings: ServiceSettings) -> None:
    """Raise `InputError` if a job is larger than the service allows.

    A value of another type than a number is left to the engine, which names what it expects.
    """
    arguments = job.arguments
    for name, limit in (("steps", settings.max_steps), ("hires_steps", settings.max_steps)):
        _check(name, arguments.get(name), limit, "steps")
    for name in ("timesteps", "sigmas"):
        _check(name, len(_listed(arguments.get(name))), settings.max_steps, "steps")
    prompts = _listed(job.prompt)
    count = arguments.get("num_images", 1)
    _check(
        "num_images", count * max(1, len(prompts)) if isinstance(count, int) else None, settings.max_images, "images"
    )
    for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
        for text in _listed(job.prompt if name == "prompt" else arguments.get(name)):
            _check(name, len(text) if isinstance(text, str) else None, settings.max_prompt_length, "characters")
    for name, side in _sides(arguments):
        _check(name, side, settings.max_side, "pixels")


def _sides(arguments: Any) -> Iterator[tuple[str, float]]:
    """Yield the sides of the output by the names of the arguments that decide them."""
    enlarged = arguments.get("hires") or 1
    for i, name in enumerate(("width", "height")):
        deciding, side = name, arguments.get(name)
        for source in ("image", "control_image", "adapter_image") if side is None else ():
            images = [each for each in _listed(arguments.get(source)) if isinstance(each, Image.Image)]
            if images and side is None:
                deciding, side = source, images[0].size[i]
        if isinstance(side, (int, float)) and isinstance(enlarged, (int, float)):
            yield (deciding if enlarged <= 1 else "hires"), _float(side) * max(_float(enlarged), 1.0)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _check(name: str, value: Any, limit: float, unit: str) -> None:
    if isinstance(value, (int, float)) and (value := _float(value)) > limit:
        expected = f"at most {limit:g} {unit}"
        message = f"{name} asks for {value:g} {unit}; this server allows {expected}."
        raise InputError(message, argument=name, got=value, expected=expected)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
