"""What a user asks for, and what that comes to: `Request` is what was said, `Job` is complete.

The command line projects its options from `Request`, so that every default is written here once.
"""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from calotype.errors import InputError
from calotype.latents import MAX_SEED
from calotype.plan import Plan

OutputType = Literal["pil", "np", "latent"]
MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call's arguments. None means "not said": the model's own size and scheduler, random seeds.

    Attributes:
        prompt: one prompt, or one a picture. The empty prompt is allowed: the model paints what it likes.
        negative_prompt: what to steer away from, one for all or one a prompt; needs guidance_scale > 1.
        steps: how many steps the scheduler makes, 1 to 1000.
        guidance_scale: how strongly the prompt steers; 1 or less turns guidance off and halves the work.
        seed: one number: picture i has seed + i; or one number a picture. 0 to 4294967295.
        width, height: pixels.
        num_images: pictures for each prompt.
        scheduler: a name ("dpm++2m-karras"), a diffusers scheduler or its class; None is the model's own.
        output_type: "pil" pictures, "np" float32 [N, H, W, 3] in [0, 1], "latent" float32 [N, C, h, w].
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] | None = None
    steps: int = 20
    guidance_scale: float = 5.0
    seed: int | Sequence[int] | None = None
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    scheduler: Any = None
    output_type: OutputType = "pil"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with every question answered: one prompt, negative prompt and seed for each picture."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: Any
    output_type: OutputType


def resolve(request: Request, plan: Plan) -> Job:
    """Check everything that can be checked before any work, and fill in what was not said. Raises `InputError`."""
    prompts = _texts("prompt", request.prompt)
    each = _whole("num_images", request.num_images, 1, plan.profile.batch.high)
    negatives = _texts("negative_prompt", request.negative_prompt or "")
    if len(negatives) not in (1, len(prompts)):
        raise InputError(f"give one negative prompt, or one for each of {len(prompts)} prompts; got {len(negatives)}.")
    negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
    count = each * len(prompts)
    width = _whole("width", plan.profile.width.usual if request.width is None else request.width, 1, 2**20)
    height = _whole("height", plan.profile.height.usual if request.height is None else request.height, 1, 2**20)
    plan.profile.check(batch=count, height=height, width=width)
    if request.output_type not in get_args(OutputType):
        raise InputError(f"output_type must be one of {', '.join(get_args(OutputType))}, got {request.output_type!r}.")
    return Job(
        prompts=tuple(p for p in prompts for _ in range(each)),
        negative_prompts=tuple(n for n in negatives for _ in range(each)),
        seeds=_seeds(request.seed, count),
        steps=_whole("steps", request.steps, 1, MAX_STEPS),
        guidance_scale=_guidance_scale(request.guidance_scale),
        width=width,
        height=height,
        scheduler=request.scheduler,
        output_type=request.output_type,
    )


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else None
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{name} must be text, or a list of texts that is not empty; got {given!r:.80}.")
    # Bytes of a terminal that were no UTF-8 arrive as lone surrogates, which no file can hold: they become "?".
    return [t.encode("utf-8", "replace").decode("utf-8") for t in texts]


def _whole(name: str, given: int, low: int, high: int) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool) or not low <= number <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, got {given!r:.80}.")
    return number


def _guidance_scale(given: float) -> float:
    try:
        scale = math.nan if isinstance(given, (bool, str)) else float(given)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not 0 <= scale <= 100:
        raise InputError(f"guidance_scale must be a number from 0 to 100 (1 or less: no guidance), got {given!r:.80}.")
    return scale


def _seeds(given: Any, count: int) -> tuple[int, ...]:
    given = given.tolist() if hasattr(given, "tolist") else given  # an array, or one number of one
    if given is None:
        return tuple(secrets.randbelow(MAX_SEED + 1) for _ in range(count))
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        if len(given) != count:
            raise InputError(f"give one seed, or one for each of {count} pictures; got {len(given)}.")
        return tuple(_whole("seed", s, 0, MAX_SEED) for s in given)
    first = _whole("seed", given, 0, MAX_SEED)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))
