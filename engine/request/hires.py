"""Hires fix: a second pass at a larger size, which starts from the enlarged image of the first pass.

Checks the arguments and computes the size, the schedule and the control inputs of the second pass. It is the same as a
second call with the enlarged image as `image`. This file does not know networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..errors.validation import check_float, check_int
from ..images.arrays import Pixels
from ..plan.plan import Plan
from ..plan.profile import Profile
from ..sampling.schedule_range import ScheduleRange
from ..upscaling import LANCZOS, RESAMPLINGS
from ..upscaling.upscaler import Upscaler
from .controls import AdapterInput, ControlInput, adapter_channels, adapter_inputs, control_inputs, control_slots
from .request import Request

MAX_FACTOR = 8
MAX_STEPS = 1000
# Latents that were resized decode to a blurred image with artifacts, and need more of the schedule than pixels do.
STRENGTHS = {"latent": 0.5}
STRENGTH = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Hires:
    """The second pass of a call.

    Attributes:
        factor: how much larger each side is, before it is rounded to the model's multiple.
        strength: the share of the schedule that runs on the enlarged image.
        steps: the steps that run, as the caller passed them; None for `strength` of the first pass's.
        upscaler: "latent", "lanczos", or what `load_upscaler` takes or returns.
        schedule_steps: the steps of the schedule, of which `schedule_range` is the part that runs.
        controls: the inputs of the ControlNets at the larger size; adapters: those of the T2I-Adapters.
    """

    factor: float
    strength: float
    steps: int | None
    upscaler: Any
    width: int
    height: int
    schedule_steps: int
    schedule_range: ScheduleRange
    controls: tuple[ControlInput, ...]
    adapters: tuple[AdapterInput, ...]


def hires_of(
    request: Request,
    plan: Plan,
    *,
    count: int,
    height: int,
    width: int,
    controls: Sequence[Sequence[Pixels]],
    adapters: Sequence[Sequence[Pixels]],
) -> Hires | None:
    """Return the second pass of a request whose first pass has this size; None without `hires`. Raises `InputError`.

    `controls` are the images of each ControlNet, and `adapters` those of each T2I-Adapter.
    """
    if request.hires is None:
        for name in ("hires_strength", "hires_steps", "hires_upscaler"):
            if getattr(request, name) is not None:
                message = f"{name} needs hires, such as hires=1.5: how much larger the second pass is."
                raise InputError(message, argument=name)
        return None
    for name in ("mask_image", "denoising_start", "denoising_end"):
        if getattr(request, name) is not None:
            message = f"hires cannot be combined with {name}. Pass the result to a second call as image=."
            raise InputError(message, argument="hires", got=request.hires)
    factor = _factor(request.hires)
    tall, wide = _size(factor, height, width, plan, count)
    upscaler = _upscaler(request.hires_upscaler)
    strength = STRENGTHS.get(str(upscaler), STRENGTH)
    if request.hires_strength is not None:
        strength = check_float("hires_strength", request.hires_strength, 1)
    schedule_steps, skipped = _schedule(request, strength)
    slots, channels = control_slots(request, plan), adapter_channels(plan)
    return Hires(
        factor=factor,
        strength=strength,
        steps=request.hires_steps,
        upscaler=upscaler,
        width=wide,
        height=tall,
        schedule_steps=schedule_steps,
        schedule_range=ScheduleRange(origin="image", skipped=skipped),
        controls=control_inputs(request, slots, controls, count=count, height=tall, width=wide),
        adapters=adapter_inputs(request, channels, adapters, count=count, height=tall, width=wide),
    )


def _factor(value: Any) -> float:
    expected = f"a number from 1 to {MAX_FACTOR}"
    try:
        factor = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        factor = math.nan
    if not 1 <= factor <= MAX_FACTOR:
        message = f"hires must be {expected}, how much larger the second pass is; got {value!r:.80}."
        raise InputError(message, argument="hires", got=value, expected=expected)
    return factor


def _size(factor: float, height: int, width: int, plan: Plan, count: int) -> tuple[int, int]:
    """Return height and width of the second pass, rounded to the model's multiple."""
    profile, multiple = plan.profile, plan.profile.multiple
    tall, wide = (max(multiple, round(side * factor / multiple) * multiple) for side in (height, width))
    try:
        profile.check(batch=profile.batches(count)[0], height=tall, width=wide)
    except InputError as outside:
        if outside.argument == "num_images":
            raise
        raise InputError(
            f"hires={factor:g} makes {wide} x {tall} pixels of {width} x {height}, and this model serves "
            f"{profile}. {_fix(profile, plan, height, width, (tall, wide))}",
            argument="hires",
            got=factor,
            expected=str(profile),
        ) from None
    return tall, wide


def _fix(profile: Profile, plan: Plan, height: int, width: int, size: tuple[int, int]) -> str:
    largest = math.floor(100 * min(profile.height.max / height, profile.width.max / width)) / 100
    smaller = f"Use hires={largest:g} or less" if largest > 1 else "Generate a smaller image"
    if not plan.build:
        return f"{smaller}."
    options = [
        f"--{name} {side.min}:{side.opt}:{max(side.max, need)}"
        for name, side, need in zip(("height", "width"), (profile.height, profile.width), size, strict=True)
    ]
    return f"{smaller}, or build the plan with {' '.join(options)}."


def _upscaler(value: Any) -> Any:
    if value is None:
        return LANCZOS
    if isinstance(value, str) and value.lower() in RESAMPLINGS:
        return value.lower()
    if isinstance(value, (str, Path, Upscaler)) and str(value):
        return value
    expected = f"{', '.join(RESAMPLINGS)}, a file of an upscaler, or what load_upscaler returns"
    message = f"hires_upscaler must be {expected}; got {value!r:.80}."
    raise InputError(message, argument="hires_upscaler", got=value, expected=expected)


def _schedule(request: Request, strength: float) -> tuple[int, int]:
    """Return the steps of the schedule of the second pass, and how many of them are skipped."""
    if request.hires_steps is None:
        total, run = request.steps, max(int(request.steps * strength), int(strength > 0))
    else:
        run = check_int("hires_steps", request.hires_steps, 1, MAX_STEPS)
        total = round(run / strength) if strength else 0
    if run < 1 or total < run:
        raise InputError(
            f"hires_strength={strength:g} runs no step of the second pass. Use a larger one, such as {STRENGTH:g}.",
            argument="hires_strength",
            got=strength,
        )
    if total > MAX_STEPS:
        raise InputError(
            f"hires_steps={run} with hires_strength={strength:g} is part of a schedule of {total} steps, and at most "
            f"{MAX_STEPS} are possible. Use fewer hires_steps, or a larger hires_strength.",
            argument="hires_steps",
            got=run,
        )
    return total, total - run
