"""What a user asks for, and what that comes to: `Request` is what was said, `Job` is complete.

The command line projects its options from `Request`, so that every default is written here once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float, check_int, check_names
from ..plan.networks import controlnets_of
from ..plan.plan import Plan, skipping
from ..plan.profile import Profile
from ..sampling.guidance import is_guided
from ..sampling.noise import MAX_SEED
from ..text.foreign_syntax import syntax_notes
from ..text.prompt_weights import parse_weighted_prompt
from .controls import parse_control_inputs
from .images import ImageConditioning, condition_on_images, notes_of, parse_image_inputs

OutputType = Literal["pil", "np", "latent"]
MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call's arguments. None means "not said": the model's own size and scheduler, random seeds.

    Attributes:
        prompt: one prompt, or one a picture. The empty prompt is allowed: the model paints what it likes. `(words:1.3)`
            count 1.3 times, 0 to 10. Long ones go through the text encoder in chunks of its length (75 tokens). At
            most 100,000 characters.
        negative_prompt: what to steer away from, one for all or one a prompt; needs guidance_scale > 1.
        steps: how many steps the scheduler makes, 1 to 1000.
        guidance_scale: how strongly the prompt steers; 1 or less turns guidance off and halves the work.
        guidance_rescale: how far the spread that guidance adds is taken back, 0 to 1; for models of a zero terminal
            signal, which overexpose without (0.7 there).
        guidance_interval: the fractions of the U-Net's calls between which there is guidance, 0 to 1; others cost half
            (Kynkaanniemi et al. 2024, arXiv 2404.07724). Another picture than without.
        cache_interval: for how many calls the U-Net's deep layers serve, 1 or more (DeepCache, arXiv 2312.00858); on
            the openvino backend. Another picture than with 1.
        clip_skip: how many layers of the text encoders are left out before their end, 1 or more; None is none. For the
            prompt, and not for the negative prompt: as in diffusers.
        seed: one number: picture i has seed + i; or one number a picture. 0 to 4294967295.
        width, height: pixels; unsaid, those of `image` or else of `control_image`, down to what the model divides;
            else the model's own.
        image: a picture to set out from, or one a prompt: PIL images, arrays [H, W, 3] of bytes or of floats in [0, 1],
            resized to the size of the result; or latents [N, C, h, w], as output_type="latent" gives them:
            one, one a prompt, or one a picture.
        mask_image: where that picture is painted over (white) and where it stays (black); one, or one a prompt.
        strength: how far to go from the picture, 0 to 1: that share of the steps is made. Unsaid, 0.8; with a mask 1.
        denoising_start, denoising_end: the share of the schedule at which latents of another model are taken up, and at
            which they are to be handed on, 0 to 1.
        control_image: for each ControlNet a picture, or one a prompt: PIL images, or arrays [H, W, 3] of bytes or of
            floats in [0, 1], resized to the size of the result. None leaves the ControlNets out.
        controlnet_conditioning_scale: how strongly they steer, 0 to 10; one for all or one for each.
        control_guidance_start, control_guidance_end: the fractions of the steps between which they steer, 0 to 1; one
            for all or one for each.
        num_images: pictures for each prompt.
        scheduler: a name ("dpm++2m-karras"), a diffusers scheduler or its class; None is the model's own.
        output_type: "pil" pictures, "np" float32 [N, H, W, 3] in [0, 1], "latent" float32 [N, C, h, w].
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] | None = None
    steps: int = 20
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    cache_interval: int = 1
    clip_skip: int | None = None
    seed: int | Sequence[int] | None = None
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    image: Any = None
    mask_image: Any = None
    strength: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    control_image: Any = None
    controlnet_conditioning_scale: float | Sequence[float] = 1.0
    control_guidance_start: float | Sequence[float] = 0.0
    control_guidance_end: float | Sequence[float] = 1.0
    scheduler: Any = None
    output_type: OutputType = "pil"


# As diffusers calls them -> as we do.
_ELSEWHERE = {"num_inference_steps": "steps", "num_images_per_prompt": "num_images", "generator": "seed"}
_HINTS = {theirs: f"The nearest: {ours}." for theirs, ours in _ELSEWHERE.items()}


def parse_request(prompt: Any, arguments: Mapping[str, Any]) -> Request:
    """The request of a call's arguments. Raises `InputError` for one that there is not, with the nearest."""
    check_names(arguments, [field.name for field in fields(Request)], _HINTS)
    return Request(prompt=prompt, **arguments)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with every question answered: one prompt, negative prompt and seed for each picture."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: zeros in place of text
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    guided: bool  # is the network asked without the prompt as well?
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    cache_interval: int
    clip_skip: int | None
    width: int
    height: int
    scheduler: Any
    output_type: OutputType
    control_images: tuple[NDArray[np.float32], ...]  # [B, 3, H, W] in [0, 1] for each ControlNet; or none at all
    control_scales: tuple[float, ...]
    control_spans: tuple[tuple[float, float], ...]  # fractions of the steps at which each begins and ends
    task: ImageConditioning
    notes: tuple[str, ...]  # what was done to the pictures given, and what in the prompts has no meaning


def resolve(request: Request, plan: Plan) -> Job:
    """Check everything that can be checked before any work, and fill in what was not said. Raises `InputError`."""
    prompts = _prompts(request, plan)
    each = check_int("num_images", request.num_images, 1, 2**20)
    steps, count = check_int("steps", request.steps, 1, MAX_STEPS), each * len(prompts)
    hints = parse_control_inputs(request, len(controlnets_of(plan.components)), len(prompts))
    given = parse_image_inputs(request, plan, len(prompts), count)
    height, width = _size(request, given.size(plan.profile.factor) or hints.size, plan.profile)
    plan.profile.check(batch=count, height=height, width=width)
    task = condition_on_images(given, plan, steps=steps, count=count, height=height, width=width)
    negatives = _negatives(request, plan, len(prompts))
    syntax = syntax_notes([*prompts, *filter(None, negatives)])
    return Job(
        prompts=tuple(p for p in prompts for _ in range(each)),
        negative_prompts=tuple(n for n in negatives for _ in range(each)),
        seeds=_seeds(request.seed, count),
        steps=steps,
        guidance_scale=check_float("guidance_scale", request.guidance_scale, 100, " (1 or less: no guidance)"),
        guided=_takes_guidance(plan) and bool(is_guided(request.guidance_scale)),
        guidance_rescale=check_float("guidance_rescale", request.guidance_rescale, 1),
        guidance_interval=_interval(request.guidance_interval),
        cache_interval=check_int("cache_interval", request.cache_interval, 1, MAX_STEPS),
        clip_skip=_clip_skip(request.clip_skip, plan),
        width=width,
        height=height,
        scheduler=request.scheduler,
        output_type=_output_type(request.output_type),
        control_images=hints.batches(count, height, width),
        control_scales=hints.scales,
        control_spans=hints.spans,
        task=task,
        notes=(*notes_of(given, hints.all_pictures, task, height, width), *syntax),
    )


def _interval(said: Sequence[float]) -> tuple[float, float]:
    if isinstance(said, str) or not isinstance(said, Sequence) or len(said) != 2:
        raise InputError(f"guidance_interval is two fractions of the calls, such as (0.1, 0.8); got {said!r:.80}.")
    start, end = (check_float("guidance_interval", fraction, 1) for fraction in said)
    if start >= end:
        raise InputError(f"guidance_interval must begin before it ends; got {said!r:.80}.")
    return start, end


def _output_type(said: OutputType) -> OutputType:
    if said not in get_args(OutputType):
        raise InputError(f"output_type must be one of {', '.join(get_args(OutputType))}, got {said!r}.")
    return said


def _size(request: Request, of_picture: tuple[int, ...] | None, profile: Profile) -> tuple[int, int]:
    """Height and width of the result: what was said, a picture's down to what the model divides, or the model's own."""

    def side(name: str, place: int) -> int:
        said = getattr(request, name)
        if said is None and of_picture is not None:
            return max(of_picture[place] // profile.multiple, 1) * profile.multiple
        return check_int(name, getattr(profile, name).opt if said is None else said, 1, 2**20)

    return side("height", 0), side("width", 1)


def _negatives(request: Request, plan: Plan, prompts: int) -> Sequence[str | None]:
    """One for each prompt."""
    if request.negative_prompt is None and plan.prompting.zero_negative:
        return [None] * prompts
    texts = _texts("negative_prompt", request.negative_prompt or "")
    if len(texts) not in (1, prompts):
        raise InputError(f"give one negative prompt, or one for each of {prompts} prompts; got {len(texts)}.")
    return texts * prompts if len(texts) == 1 else texts


def _prompts(request: Request, plan: Plan) -> list[str]:
    if plan.prompting.states:
        return _texts("prompt", request.prompt)
    if request.prompt not in (None, "") or request.negative_prompt not in (None, ""):
        raise InputError("this model paints without text; give it no prompt, and num_images= for several pictures.")
    return [""]


def _takes_guidance(plan: Plan) -> bool:
    """Can the U-Net be asked with a prompt and without? One that was distilled with its guidance is told how much."""
    return bool(plan.prompting.states) and not any(b.name == "timestep_cond" for b in plan.components["unet"].inputs)


def _clip_skip(said: Any, plan: Plan) -> int | None:
    if said is None:
        return None
    if not plan.prompting.states:
        raise InputError("clip_skip is of text encoders, which this model does not have.")
    outputs = {name: {b.name for b in plan.components[name].outputs} for name, _ in plan.prompting.states}
    most = 0
    while all(skipping(output, most + 1) in outputs[name] for name, output in plan.prompting.states):
        most += 1
    return check_int("clip_skip", said, 0, most) or None


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else None
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{name} must be text, or a list of texts that is not empty; got {given!r:.80}.")
    # Bytes of a terminal that were no UTF-8 arrive as lone surrogates, which no file can hold: they become "?".
    texts = [t.encode("utf-8", "replace").decode("utf-8") for t in texts]
    for text in texts:
        parse_weighted_prompt(text)  # a wrong weight is told now, not after the work has begun
    return texts


def _seeds(given: Any, count: int) -> tuple[int, ...]:
    given = given.tolist() if hasattr(given, "tolist") else given  # an array, or one number of one
    if given is None:
        return tuple(secrets.randbelow(MAX_SEED + 1) for _ in range(count))
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        if len(given) != count:
            raise InputError(f"give one seed, or one for each of {count} pictures; got {len(given)}.")
        return tuple(check_int("seed", s, 0, MAX_SEED) for s in given)
    first = check_int("seed", given, 0, MAX_SEED)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))
