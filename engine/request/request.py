"""`Request`, the arguments of a call, and `Job`, the arguments resolved against a plan.

Every default is written here once: the command line projects its options from `Request`.
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
    """Arguments of one call. None selects the default: the model's size and scheduler, random seeds.

    Attributes:
        prompt: one prompt, or a list. The empty prompt is allowed. `(words:1.3)` weighs the words 1.3 times; a weight
            is from 0 to 10. A long prompt goes through the text encoder in chunks of its length (75 tokens). At most
            100,000 characters.
        negative_prompt: text that describes what to avoid, one for all prompts or one for each; needs
            guidance_scale > 1.
        steps: number of denoising steps, 1 to 1000.
        guidance_scale: strength of the prompt, 0 to 100; 1 or less turns guidance off and halves the work.
        guidance_rescale: how much of the contrast that guidance adds is removed, 0 to 1. Models with a zero terminal
            signal overexpose without it (use 0.7).
        guidance_interval: start and end of guidance as fractions of the U-Net calls, 0 to 1. Calls outside cost half
            (Kynkaanniemi et al. 2024, arXiv 2404.07724). It changes the image.
        cache_interval: compute the deep layers of the U-Net once in this many calls, 1 or more (DeepCache, arXiv
            2312.00858); needs the openvino backend. A value above 1 changes the image.
        clip_skip: number of last layers of the text encoders to skip, 1 or more; None skips none. As in diffusers, it
            applies to the prompt only, not to the negative prompt.
        seed: one number, where image i uses seed + i, or one number for each image. 0 to 4294967295.
        width, height: pixels. The default is the size of `image`, or else of `control_image`, rounded down to the
            model's multiple; without both, the model's size.
        image: input of image-to-image or inpainting, one or one for each prompt: PIL images, or arrays [H, W, 3] of
            bytes or of floats in [0, 1], which are resized to the output size. Or latents [N, C, h, w] from
            output_type="latent": one, one for each prompt, or one for each image.
        mask_image: inpainting mask, one or one for each prompt: white is repainted, black is kept.
        strength: fraction of the steps that run on `image`, 0 to 1. The default is 0.8; with a mask 1.
        denoising_start, denoising_end: fractions of the schedule, 0 to 1, at which this call takes over the latents of
            another model, and at which it hands its latents to another.
        control_image: for each ControlNet an image, or one for each prompt: PIL images, or arrays [H, W, 3] of bytes
            or of floats in [0, 1], which are resized to the output size. None turns the ControlNets off.
        controlnet_conditioning_scale: strength of the ControlNets, 0 to 10; one for all or one for each.
        control_guidance_start, control_guidance_end: fractions of the steps at which they start and stop, 0 to 1; one
            for all or one for each.
        num_images: number of images for each prompt.
        scheduler: a name ("dpm++2m-karras"), a diffusers scheduler or its class; None is the model's scheduler.
        output_type: "pil" for PIL images, "np" for float32 [N, H, W, 3] in [0, 1], "latent" for float32 [N, C, h, w].
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


_DIFFUSERS_NAMES = {"num_inference_steps": "steps", "num_images_per_prompt": "num_images", "generator": "seed"}
_HINTS = {theirs: f"The nearest: {ours}." for theirs, ours in _DIFFUSERS_NAMES.items()}


def parse_request(prompt: Any, arguments: Mapping[str, Any]) -> Request:
    """Return the request of a call's arguments. Raises `InputError` with the nearest name for an unknown argument."""
    check_names(arguments, [field.name for field in fields(Request)], _HINTS)
    return Request(prompt=prompt, **arguments)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request resolved against a plan: every value is set, with a prompt, negative prompt and seed for each image."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: zeros in place of text
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    guided: bool  # whether the network also runs without the prompt
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    cache_interval: int
    clip_skip: int | None
    width: int
    height: int
    scheduler: Any
    output_type: OutputType
    control_images: tuple[NDArray[np.float32], ...]  # [B, 3, H, W] in [0, 1] for each ControlNet; or empty
    control_scales: tuple[float, ...]
    control_spans: tuple[tuple[float, float], ...]  # fractions of the steps at which each starts and stops
    task: ImageConditioning
    notes: tuple[str, ...]  # changes of the input images, and prompt syntax without effect


def resolve(request: Request, plan: Plan) -> Job:
    """Check all arguments that can be checked before the work, and fill in the defaults. Raises `InputError`."""
    prompts = _prompts(request, plan)
    each = check_int("num_images", request.num_images, 1, 2**20)
    steps, count = check_int("steps", request.steps, 1, MAX_STEPS), each * len(prompts)
    controls = parse_control_inputs(request, len(controlnets_of(plan.components)), len(prompts))
    images = parse_image_inputs(request, plan, len(prompts), count)
    height, width = _size(request, images.size(plan.profile.factor) or controls.size, plan.profile)
    plan.profile.check(batch=count, height=height, width=width)
    task = condition_on_images(images, plan, steps=steps, count=count, height=height, width=width)
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
        control_images=controls.batches(count, height, width),
        control_scales=controls.scales,
        control_spans=controls.spans,
        task=task,
        notes=(*notes_of(images, controls.all_images, task, height, width), *syntax),
    )


def _interval(interval: Sequence[float]) -> tuple[float, float]:
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 2:
        raise InputError(f"guidance_interval must be two fractions, such as (0.1, 0.8); got {interval!r:.80}.")
    start, end = (check_float("guidance_interval", fraction, 1) for fraction in interval)
    if start >= end:
        raise InputError(f"guidance_interval must begin before it ends; got {interval!r:.80}.")
    return start, end


def _output_type(output_type: OutputType) -> OutputType:
    if output_type not in get_args(OutputType):
        raise InputError(f"output_type must be one of {', '.join(get_args(OutputType))}; got {output_type!r}.")
    return output_type


def _size(request: Request, image_size: tuple[int, ...] | None, profile: Profile) -> tuple[int, int]:
    """Return height and width of the output: as requested, or of the input image (rounded down), or the model's."""

    def side(name: str, axis: int) -> int:
        value = getattr(request, name)
        if value is None and image_size is not None:
            return max(image_size[axis] // profile.multiple, 1) * profile.multiple
        return check_int(name, getattr(profile, name).opt if value is None else value, 1, 2**20)

    return side("height", 0), side("width", 1)


def _negatives(request: Request, plan: Plan, prompts: int) -> Sequence[str | None]:
    """Return a negative prompt for each prompt; None stands for zeros."""
    if request.negative_prompt is None and plan.prompting.zero_negative:
        return [None] * prompts
    texts = _texts("negative_prompt", request.negative_prompt or "")
    if len(texts) not in (1, prompts):
        raise InputError(f"pass one negative_prompt, or one for each of {prompts} prompts; got {len(texts)}.")
    return texts * prompts if len(texts) == 1 else texts


def _prompts(request: Request, plan: Plan) -> list[str]:
    if plan.prompting.states:
        return _texts("prompt", request.prompt)
    if request.prompt not in (None, "") or request.negative_prompt not in (None, ""):
        raise InputError("this model is unconditional and takes no prompt. Use num_images= to generate several images.")
    return [""]


def _takes_guidance(plan: Plan) -> bool:
    """Return whether guidance runs the U-Net twice. A distilled U-Net takes the guidance scale as an input instead."""
    return bool(plan.prompting.states) and not any(b.name == "timestep_cond" for b in plan.components["unet"].inputs)


def _clip_skip(value: Any, plan: Plan) -> int | None:
    if value is None:
        return None
    if not plan.prompting.states:
        raise InputError("clip_skip needs a text encoder, which this model lacks. Omit clip_skip.")
    outputs = {name: {b.name for b in plan.components[name].outputs} for name, _ in plan.prompting.states}
    limit = 0
    while all(skipping(output, limit + 1) in outputs[name] for name, output in plan.prompting.states):
        limit += 1
    return check_int("clip_skip", value, 0, limit) or None


def _texts(name: str, value: str | Sequence[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{name} must be text, or a list of texts that is not empty; got {value!r:.80}.")
    # Terminal bytes that are not UTF-8 arrive as lone surrogates, which no file can store: they become "?".
    texts = [t.encode("utf-8", "replace").decode("utf-8") for t in texts]
    for text in texts:
        parse_weighted_prompt(text)  # a wrong weight raises before the work
    return texts


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    seed = seed.tolist() if hasattr(seed, "tolist") else seed  # an array, or a number of numpy or torch
    if seed is None:
        return tuple(secrets.randbelow(MAX_SEED + 1) for _ in range(count))
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != count:
            raise InputError(f"pass one seed, or one for each of {count} images; got {len(seed)}.")
        return tuple(check_int("seed", each, 0, MAX_SEED) for each in seed)
    first = check_int("seed", seed, 0, MAX_SEED)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))
