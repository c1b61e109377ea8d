"""`ResolvedRequest`: the arguments of a call, checked against a plan, with every default filled in."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_bool, check_float, check_int
from ..images.arrays import batch
from ..plan.networks import controlnets_of
from ..plan.plan import Plan, skipping
from ..plan.profile import Profile
from ..sampling.noise import MAX_SEED
from ..sampling.schedule_range import ScheduleRange
from ..sampling.schedulers import SchedulerLike
from .controls import ControlInput, control_inputs, load_control_images
from .hires import Hires, hires_of
from .images import batch_of_masks, check_image_arguments, image_notes, latents_from, load_images, schedule_range_for
from .prompts import Tokenizers, TokensByEncoder, texts_of, tokenize
from .request import CallsFrom, OutputType, Request, parse_request

Floats = NDArray[np.float32]
MAX_STEPS = 1000
MAX_IMAGES = 1000  # of a call


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedRequest:
    """A request resolved against a plan: every value is set, with a prompt, negative prompt and seed for each image."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: zeros in place of text
    tokens: TokensByEncoder  # [N, ...]: 2B rows if guided, the negative prompts first; else B
    seeds: tuple[int, ...]
    steps: int
    calls: int | None
    calls_from: CallsFrom
    min_psnr: float | None
    guidance_scale: float
    guided: bool  # whether the network also runs without the prompt
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    cache_interval: int
    clip_skip: int | None
    width: int
    height: int
    scheduler: SchedulerLike
    output_type: OutputType
    image: Floats | None  # [B, 3, H, W] in [0, 1]
    image_latents: Floats | None  # [B, C, h, w], if the request passes latents as the image
    inpaint_mask: NDArray[np.bool_] | None  # [B, 1, H, W]
    strength: float | None
    schedule_range: ScheduleRange
    controls: tuple[ControlInput, ...]  # one for each ControlNet, or none
    hires: Hires | None  # the second pass
    progress: bool
    notes: tuple[str, ...]  # for the report: changes of the input images, text without effect

    def arguments(self, i: int) -> dict[str, Any]:
        """Return the values of the arguments that generate image i again, by their names in `Request`."""
        values = {**vars(self), "prompt": self.prompts[i], "negative_prompt": self.negative_prompts[i]}
        values |= {"seed": self.seeds[i], "denoising_start": self.schedule_range.begin}
        values["denoising_end"] = self.schedule_range.end
        if self.controls:
            values["controlnet_conditioning_scale"] = [each.scale for each in self.controls]
            values["control_guidance_start"] = [each.start for each in self.controls]
            values["control_guidance_end"] = [each.end for each in self.controls]
        if (hires := self.hires) is not None:
            values |= {"hires": hires.factor, "hires_strength": hires.strength, "hires_steps": hires.steps}
            values["hires_upscaler"] = str(hires.upscaler)
        return values

    def second_pass(self) -> ResolvedRequest:
        """Return the request of the second pass of `hires`. Its image, or latents, are those of the first pass."""
        hires = self.hires
        assert hires is not None
        return replace(
            self,
            width=hires.width,
            height=hires.height,
            steps=hires.schedule_steps,
            schedule_range=hires.schedule_range,
            strength=hires.strength,
            controls=hires.controls,
            calls=None,
            min_psnr=None,
            image=None,
            image_latents=None,
            hires=None,
        )


def resolve(prompt: Any, arguments: Mapping[str, Any], plan: Plan, tokenizers: Tokenizers) -> ResolvedRequest:
    """Check all arguments of a call that can be checked before the work, and fill in the defaults.

    Args:
        prompt: the prompt, or a list.
        arguments: other arguments, by their names in `Request`.
        plan: the model's plan.
        tokenizers: the tokenizer of each text encoder.

    Raises:
        InputError: an argument is unknown or wrong.
    """
    request = parse_request(prompt, arguments)
    _check_choice("output_type", request.output_type, get_args(OutputType))
    notes: list[str] = []
    prompts, negatives = texts_of(request, plan)
    each = check_int("num_images", request.num_images, 1, MAX_IMAGES)
    steps, count = check_int("steps", request.steps, 1, MAX_STEPS), each * len(prompts)
    if count > MAX_IMAGES:
        message = f"a call generates at most {MAX_IMAGES} images, got {count} ({len(prompts)} prompts x {each})."
        raise InputError(message, argument="num_images", got=count, expected=f"at most {MAX_IMAGES}")
    images = _image_fields(request, plan, steps, prompts=len(prompts), count=count, notes=notes)
    prompts = [text for text in prompts for _ in range(each)]
    negatives = [text for text in negatives for _ in range(each)]
    scale = check_float("guidance_scale", request.guidance_scale, 100, " (1 or less: no guidance)")
    guided = scale > 1 and _takes_guidance(plan)  # 1 or less skips the unconditional half, as in diffusers
    return ResolvedRequest(
        prompts=tuple(prompts),
        negative_prompts=tuple(negatives),
        tokens=tokenize(plan, tokenizers, prompts, negatives, guided=guided, notes=notes),
        seeds=_seeds(request.seed, count),
        steps=steps,
        **_fewer_calls(request, steps),
        guidance_scale=scale,
        guided=guided,
        guidance_rescale=check_float("guidance_rescale", request.guidance_rescale, 1),
        guidance_interval=_interval(request.guidance_interval),
        cache_interval=check_int("cache_interval", request.cache_interval, 1, MAX_STEPS),
        clip_skip=_clip_skip(request.clip_skip, plan),
        scheduler=request.scheduler,
        output_type=request.output_type,
        **images,
        progress=check_bool("progress", request.progress),
        notes=tuple(notes),
    )


class _ImageFields(TypedDict):
    """The fields of a `ResolvedRequest` that depend on its images."""

    width: int
    height: int
    image: Floats | None
    image_latents: Floats | None
    inpaint_mask: NDArray[np.bool_] | None
    strength: float | None
    schedule_range: ScheduleRange
    controls: tuple[ControlInput, ...]
    hires: Hires | None


def _image_fields(
    request: Request, plan: Plan, steps: int, *, prompts: int, count: int, notes: list[str]
) -> _ImageFields:
    """Load the images, masks and control images, and bring them to one size. Append to `notes` what that changed."""
    latents = latents_from(request.image, int(plan.latents.dims[1]), prompts, count)
    images = load_images("image", None if latents is not None else request.image, prompts)
    masks = load_images("mask_image", request.mask_image, prompts)
    has_image = bool(images) or latents is not None
    task = {"has_image": has_image, "has_mask": bool(masks), "inpainting": plan.inpaints}
    check_image_arguments(request, has_latents=latents is not None, **task)
    nets = len(controlnets_of(plan.components))
    control_images = load_control_images(request.control_image, nets, prompts)
    flat_controls = [image for net in control_images for image in net]
    sizes = [image.shape[:2] for image in (*images, *flat_controls)]
    if latents is not None:
        sizes = [(latents.shape[2] * plan.profile.factor, latents.shape[3] * plan.profile.factor)]
    height, width = _size(request, sizes[0] if sizes else None, plan.profile)
    for size in set(plan.profile.batches(count)):
        plan.profile.check(batch=size, height=height, width=width)
    if latents is not None and sizes[0] != (height, width):
        raise InputError(
            f"image= contains latents of {sizes[0]} pixels (height, width); expected {height, width}.", argument="image"
        )
    schedule_range, strength = schedule_range_for(request, steps=steps, distilled=_is_distilled(plan), **task)
    inpaint_mask = batch_of_masks(masks, count, height, width)
    notes += image_notes(images, masks, flat_controls, inpaint_mask, (height, width))
    return _ImageFields(
        width=width,
        height=height,
        image=batch(images, count, height, width) if images else None,
        image_latents=None if latents is None else latents.repeat(count // len(latents), axis=0),
        inpaint_mask=inpaint_mask,
        strength=strength,
        schedule_range=schedule_range,
        controls=control_inputs(request, nets, control_images, count=count, height=height, width=width),
        hires=hires_of(request, plan, count=count, height=height, width=width, controls=control_images),
    )


def _size(request: Request, image_size: tuple[int, ...] | None, profile: Profile) -> tuple[int, int]:
    """Return height and width of the output: as requested, or of the input image (rounded down), or the model's."""
    sides: Mapping[str, int | None] = {"height": request.height, "width": request.width}
    if image_size is not None:
        rounded = [max(side // profile.multiple, 1) * profile.multiple for side in image_size]
        sides = {n: size if side is None else side for (n, side), size in zip(sides.items(), rounded, strict=True)}
    height, width = (
        check_int(name, getattr(profile, name).opt if value is None else value, 1, 2**20)
        for name, value in sides.items()
    )
    return height, width


def _takes_guidance(plan: Plan) -> bool:
    """Return whether guidance runs the U-Net twice."""
    return bool(plan.prompting.states) and not _is_distilled(plan)


def _is_distilled(plan: Plan) -> bool:
    """Return whether the U-Net takes the guidance scale as an input, as a latent consistency model does."""
    return any(b.name == "timestep_cond" for b in plan.components["unet"].inputs)


def _fewer_calls(request: Request, steps: int) -> dict[str, Any]:
    """Return the arguments that ask for fewer network calls than steps."""
    _check_choice("calls_from", request.calls_from, get_args(CallsFrom))
    if request.calls is not None and request.min_psnr is not None:
        message = "pass calls or min_psnr, not both: min_psnr chooses the number of calls."
        raise InputError(message, argument="min_psnr", got=request.min_psnr)
    if request.calls is None and request.calls_from == "forecast":
        raise InputError('calls_from="forecast" needs calls.', argument="calls_from", got=request.calls_from)
    calls = None if request.calls is None else check_int("calls", request.calls, 1, 2 * steps)
    psnr = None if request.min_psnr is None else check_float("min_psnr", request.min_psnr, 100)
    return {"calls": calls, "calls_from": request.calls_from, "min_psnr": psnr}


def _interval(interval: Sequence[float]) -> tuple[float, float]:
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 2:
        raise InputError(
            f"guidance_interval must be two fractions, such as (0.1, 0.8); got {interval!r:.80}.",
            argument="guidance_interval",
            got=interval,
        )
    start, end = (check_float("guidance_interval", fraction, 1) for fraction in interval)
    if start >= end:
        raise InputError(
            f"guidance_interval must begin before it ends; got {interval!r:.80}.",
            argument="guidance_interval",
            got=interval,
        )
    return start, end


def _clip_skip(value: Any, plan: Plan) -> int | None:
    if value is None:
        return None
    if not plan.prompting.states:
        raise InputError(
            "clip_skip needs a text encoder, which this model lacks. Omit clip_skip.", argument="clip_skip", got=value
        )
    outputs = {name: {b.name for b in plan.components[name].outputs} for name, _ in plan.prompting.states}
    limit = 0
    while all(skipping(output, limit + 1) in outputs[name] for name, output in plan.prompting.states):
        limit += 1
    return check_int("clip_skip", value, 0, limit) or None


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        message = f"{name} must be one of {', '.join(choices)}; got {value!r}."
        raise InputError(message, argument=name, got=value)


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    seed = seed.tolist() if hasattr(seed, "tolist") else seed  # an array, or a number of numpy or torch
    if seed is None:
        return tuple(secrets.randbelow(2**32) for _ in range(count))
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != count:
            raise InputError(
                f"pass one seed, or one for each of {count} images; got {len(seed)}.", argument="seed", got=len(seed)
            )
        return tuple(check_int("seed", each, 0, MAX_SEED) for each in seed)
    first = check_int("seed", seed, 0, MAX_SEED)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))
