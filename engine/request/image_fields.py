"""The images of a request, brought to one size, with the part of the schedule that they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_int
from ..images.arrays import Pixels, batch
from ..images.mask_crop import MaskCrop
from ..plan.plan import Plan
from ..plan.profile import Profile
from ..sampling.matrix import InpaintMask
from ..sampling.schedule_range import ScheduleRange
from .conditions import check_condition, depth_from, noise_level_of, vision_pixels
from .controls import (
    AdapterInput,
    ControlInput,
    adapter_channels,
    adapter_inputs,
    control_inputs,
    control_slots,
    load_adapter_images,
    load_control_images,
)
from .hires import Hires, hires_of
from .images import (
    check_image_arguments,
    crop_padding,
    cropped,
    image_notes,
    latents_from,
    load_images,
    schedule_range_for,
    stacked_masks,
)
from .noise_and_steps import latents_argument
from .request import Request
from .video.clip import ClipSettings

Floats = NDArray[np.float32]


class ImageFields(TypedDict):
    """The fields of a `ResolvedRequest` that depend on its images."""

    width: int
    height: int
    noise: Floats | None
    image: Floats | None
    image_latents: Floats | None
    video: Floats | None
    inpaint_mask: InpaintMask | None
    soft_mask: bool
    depth: Floats | None
    vision: Floats | None
    noise_level: int | None
    strength: float | None
    schedule_range: ScheduleRange
    controls: tuple[ControlInput, ...]
    adapters: tuple[AdapterInput, ...]
    hires: Hires | None
    mask_crop: MaskCrop | None


def image_fields(
    request: Request,
    plan: Plan,
    steps: int,
    *,
    prompts: int,
    count: int,
    notes: list[str],
    clip: ClipSettings | None,
    video: Sequence[Pixels],
) -> ImageFields:
    """Load the images, masks and control images, and bring them to one size. Append to `notes` what that changed.

    `clip` is what the call generates, if not images, and `video` an input clip.
    """
    frames = () if clip is None else (clip.frames,)
    channels, factor = plan.latent_channels, plan.profile.factor
    latents = latents_from(request.image, channels, prompts, count)
    noise = latents_argument(request, (channels, *frames) if plan.animates else (*frames, channels), count)
    images = load_images("image", None if latents is not None else request.image, prompts)
    masks = load_images("mask_image", request.mask_image, prompts)
    has_image = bool(images) or latents is not None or bool(video)
    task = {"has_image": has_image, "has_mask": bool(masks), "inpainting": plan.inpaints}
    takes = plan.image_input
    check_condition(request, plan, has_image=has_image, has_latents=latents is not None, has_mask=bool(masks))
    check_image_arguments(request, has_latents=latents is not None, **task)
    slots = control_slots(request, plan)
    of_clip = clip.frames if clip is not None and plan.animates else None  # control images are those of its frames
    each, noun = (prompts, "prompts") if of_clip is None else (of_clip, "frames")
    control_images = load_control_images(request.control_image, len(slots), each, noun)
    adapters = adapter_channels(plan)
    adapter_images = load_adapter_images(request.adapter_image, adapters, prompts)
    flat_controls, flat_adapters = (
        [image for net in each for image in net] for each in (control_images, adapter_images)
    )
    padding = crop_padding(request, len(images), len(masks))
    enlarges, only_seen = (1, False) if takes is None else (takes.enlarges, takes.kind == "vision")
    decides = [] if takes is not None and takes.sees else [*images, *video[:1]]  # whose size is that of the output
    sizes = [(i.shape[0] * enlarges, i.shape[1] * enlarges) for i in decides]
    sizes = [*sizes, *(image.shape[:2] for image in (*flat_controls, *flat_adapters))] if padding is None else []
    if latents is not None:
        sizes = [(latents.shape[2] * factor * enlarges, latents.shape[3] * factor * enlarges)]
    in_pixels = None if noise is None else (noise.shape[-2] * factor, noise.shape[-1] * factor)
    height, width = _size(request, sizes[0] if sizes else in_pixels, plan.profile)
    small, latents_size = (height // enlarges, width // enlarges), (height // factor, width // factor)
    for size in set(plan.profile.batches(count)):
        plan.profile.check(batch=size, height=height, width=width)
    if latents is not None and sizes[0] != (height, width):
        raise InputError(
            f"image= contains latents of {sizes[0]} pixels (height, width); expected {height, width}.", argument="image"
        )
    if in_pixels not in (None, (height, width)):
        message = f"latents= is noise for {in_pixels} pixels (height, width); expected {height, width}."
        raise InputError(message, argument="latents", got=in_pixels)
    crop = None if padding is None else cropped(images, masks, padding, height, width)
    starts = takes is not None and takes.replaces_start  # from noise, whatever the image
    task["has_image"] = has_image and not starts
    schedule_range, strength = schedule_range_for(request, steps=steps, distilled=is_distilled(plan), **task)
    inpaint_mask = stacked_masks(masks, height, width, soft=request.soft_mask)
    notes += image_notes(
        [] if only_seen else images, masks, (flat_controls, flat_adapters), inpaint_mask, (height, width), small
    )
    return ImageFields(
        width=width,
        height=height,
        noise=None if noise is None else noise.repeat(count // len(noise), axis=0),
        image=batch(images, len(images) if takes is None or plan.inpaints else count, *small)
        if images and not only_seen
        else None,
        image_latents=None if latents is None else latents.repeat(count // len(latents), axis=0),
        video=batch(video, len(video), height, width)[None] if video else None,
        inpaint_mask=inpaint_mask,
        soft_mask=request.soft_mask,
        depth=depth_from(request.depth_map, prompts, count, latents_size),
        vision=vision_pixels(images, takes, _vision_side(plan), count) if takes and takes.sees else None,
        noise_level=noise_level_of(request, takes),
        strength=strength,
        schedule_range=schedule_range,
        mask_crop=crop,
        controls=control_inputs(
            request, slots, control_images, count=count, height=height, width=width, frames=of_clip
        ),
        adapters=adapter_inputs(request, adapters, adapter_images, count=count, height=height, width=width),
        hires=hires_of(
            request,
            plan,
            count=count,
            height=height,
            width=width,
            controls=control_images,
            adapters=adapter_images,
        ),
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


def is_distilled(plan: Plan) -> bool:
    """Return whether the U-Net takes the guidance scale as an input, as a latent consistency model does."""
    embedded = any(b.name == "timestep_cond" for b in plan.components["unet"].inputs)
    return embedded and not plan.takes("latents")


def _vision_side(plan: Plan) -> int:
    return int(plan.components["image_encoder"].inputs[0].dims[-1])
