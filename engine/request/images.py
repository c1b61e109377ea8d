"""Image inputs of a request: image-to-image, inpainting, and the handoff of latents between models.

Turns `image`, `mask_image`, `strength`, `denoising_start` and `denoising_end` into arrays of one size and a range of
the schedule. Does not know networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_bool, check_float, check_int
from ..images.arrays import Images, Pixels, as_list, load_image_array, load_mask_array, resize_image, to_array
from ..images.mask_crop import MaskCrop, mask_crop
from ..sampling.matrix import InpaintMask
from ..sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from .request import Request

Floats = NDArray[np.float32]
SOFT_MASK = "a soft mask starts pixels at different steps"  # why the scheduler runs its own code


def load_images(name: str, value: Images, prompts: int) -> list[Pixels]:
    """Return the images or masks of an argument: none, one, or one for each prompt.  # [H, W, 3]

    Raises `InputError`.
    """
    if value is None:
        return []
    images = as_list(value)
    if not images:
        raise InputError(f"{name} must be an image, or a list of images that is not empty.", argument=name)
    if len(images) not in (1, prompts):
        raise InputError(
            f"pass one {name}, or one for each of {prompts} prompts; got {len(images)}.", argument=name, got=len(images)
        )
    return [load_mask_array(each) if name == "mask_image" else load_image_array(name, each) for each in images]


def latents_from(image: Images, channels: int, prompts: int, count: int) -> Floats | None:
    """Return the image as latents, if it is an array or a tensor like the result of output_type="latent".

    `count` is the number of images of the call: latents may be those of a call with num_images. Raises `InputError`.
    """
    if image is None:
        return None
    array = to_array(image)
    if not (isinstance(array, np.ndarray) and array.ndim == 4 and array.dtype.kind == "f"):
        return None
    channel = -1 if array is image else 1  # of images; a tensor's are in front, as those of latents
    as_pixels = array.shape[channel] in (3, 4 if array is image else 3)
    as_pixels = as_pixels and array.size > 0 and array.min() >= 0 and array.max() <= 1
    image = array
    if image.shape[1] != channels or as_pixels:  # a batch of [H, W, C] images
        return None
    if not np.isfinite(image).all():
        raise InputError("image= contains latents that are not finite numbers.", argument="image")
    if len(image) not in (1, prompts, count):
        each = f"{prompts} prompts" if prompts == count else f"{prompts} prompts or {count} images"
        raise InputError(
            f"pass latents of one image, or of one for each of {each}; got {len(image)}.",
            argument="image",
            got=len(image),
        )
    return image.astype(np.float32)


def check_image_arguments(
    request: Request, *, has_image: bool, has_latents: bool, has_mask: bool, inpainting: bool
) -> None:
    """Raise `InputError` if the arguments do not fit together, or do not fit an inpainting model."""
    begin, end = _handoff(request)
    strength = _fraction("strength", request.strength)
    soft = check_bool("soft_mask", request.soft_mask)
    if soft and not has_mask:
        raise InputError("soft_mask needs a mask. Pass one as mask_image=.", argument="soft_mask")
    if soft and inpainting:
        message = "an inpainting model takes hard masks only. Omit soft_mask, or load a text-to-image model."
        raise InputError(message, argument="soft_mask")
    needs_image = {"mask_image": has_mask, "strength": strength is not None, "denoising_start": begin is not None}
    for name, is_set in needs_image.items():
        if is_set and not has_image:
            raise InputError(f"{name} needs an input image. Pass one as image=.", argument=name)
    if begin is not None and strength is not None:
        raise InputError(
            "strength and denoising_start both choose the first step. Pass only one of them.",
            argument="strength",
            got=strength,
        )
    if begin is not None and end is not None and begin >= end:
        raise InputError(
            f"denoising_start={begin:g} must come before denoising_end={end:g}.", argument="denoising_start", got=begin
        )
    if inpainting and has_latents:
        raise InputError(
            "an inpainting model takes pixels as image=, got latents. Decode them first.", argument="image"
        )
    if inpainting and not has_mask:
        raise InputError(
            "an inpainting model needs image= and mask_image= (white is repainted).", argument="mask_image"
        )


def schedule_range_for(
    request: Request, *, steps: int, distilled: bool, has_image: bool, has_mask: bool, inpainting: bool
) -> tuple[ScheduleRange, float | None]:
    """Return the part of the schedule that the call runs, and the strength that chose it. Raises `InputError`.

    A `distilled` U-Net (a latent consistency model) runs all steps on an image, as in diffusers.
    """
    begin, end = _handoff(request)
    end = None if end == 1 else end  # at the end of the schedule there is no handoff
    if not has_image:
        return FULL_SCHEDULE if end is None else ScheduleRange(end=end), None
    preserves_unmasked = has_mask and not inpainting
    if begin is not None:
        return ScheduleRange(origin="latents", begin=begin, end=end, preserves_unmasked=preserves_unmasked), None
    strength = _fraction("strength", request.strength)
    if strength is None:
        strength = 1.0 if has_mask else 0.8
    within = strength if distilled and not has_mask and strength > 0 else None
    remaining = min(int(steps * strength), steps) or (0 if within is None else 1)
    if remaining < 1:
        hint = f"Use strength >= {1 / steps:.2g} or more steps."
        raise InputError(
            f"strength={strength:g} with steps={steps} runs no denoising step. {hint}",
            argument="strength",
            got=strength,
        )
    pure_noise = has_mask and strength == 1  # the first latents contain nothing of the image
    part = ScheduleRange(
        origin="noise" if pure_noise else "image",
        skipped=steps - remaining,
        end=end,
        preserves_unmasked=preserves_unmasked,
        strength=within,
    )
    return part, strength


def crop_padding(request: Request, images: int, masks: int) -> int | None:
    """Return the pixels around the mask, if only the area around it is to be generated. Raises `InputError`."""
    if request.padding_mask_crop is None:
        return None
    padding = check_int("padding_mask_crop", request.padding_mask_crop, 0, 2**16)
    reason = "needs image= and mask_image=, one of each" if (images, masks) != (1, 1) else ""
    for name in ("control_image", "adapter_image"):
        if getattr(request, name) is not None:
            reason = f"cannot be combined with {name}"
    if request.output_type != "pil":
        reason = "gives images of the input's size, and so needs output_type='pil'"
    if reason:
        raise InputError(f"padding_mask_crop {reason}.", argument="padding_mask_crop", got=padding)
    return padding


def cropped(images: list[Pixels], masks: list[Pixels], padding: int, height: int, width: int) -> MaskCrop:
    """Replace the image and its mask by the area around the mask. Raises `InputError`."""
    crop = mask_crop(images[0], masks[0], padding=padding, height=height, width=width)
    if crop is None:
        message = "mask_image is black everywhere, so padding_mask_crop has no area to generate."
        raise InputError(message, argument="padding_mask_crop", got=padding)
    images[0], masks[0] = crop.cut(crop.image, height, width), crop.cut(crop.mask, height, width)
    return crop


def stacked_masks(masks: Sequence[Pixels], height: int, width: int, *, soft: bool) -> InpaintMask | None:
    """Resize masks to one size; None without masks.  # -> [masks, 1, height, width]

    True is repainted. A soft mask is the share of the steps that repaint: float32 in [0, 1].
    """
    if not masks:
        return None
    shares = np.stack([resize_image(mask, height, width).mean(axis=-1, dtype=np.float64) for mask in masks])
    stacked: InpaintMask = shares.astype(np.float32) if soft else shares >= 0.5
    return stacked[:, None]


def image_notes(
    images: Sequence[Pixels],
    masks: Sequence[Pixels],
    steering: tuple[Sequence[Pixels], Sequence[Pixels]],
    inpaint_mask: InpaintMask | None,
    size: tuple[int, int],
    image_size: tuple[int, int],
) -> Iterator[str]:
    """Yield notes for the report: images resized to `image_size` (height, width), masks and the images of ControlNets
    and T2I-Adapters (`steering`) to `size`, control images and masks without effect."""
    controls, adapters = steering
    kinds = {"image": images, "mask": masks, "control image": controls, "adapter image": adapters}
    for name, old in dict.fromkeys((name, image.shape[:2]) for name, each in kinds.items() for image in each):
        if old != (height_width := image_size if name == "image" else size):
            height, width = height_width
            yield f"the {name} of {old[1]} x {old[0]} pixels was resized to {width} x {height}"
    if any((image == image[0, 0]).all() for image in controls):
        yield "a control image has one color everywhere, so it has no effect"
    if inpaint_mask is not None and not inpaint_mask.any(axis=(1, 2, 3)).all():
        yield "a mask is black everywhere, so its image is not changed"


def _handoff(request: Request) -> tuple[float | None, float | None]:
    """Return the fractions at which the call takes over latents and hands them on."""
    start = _fraction("denoising_start", request.denoising_start)
    return start, _fraction("denoising_end", request.denoising_end)


def _fraction(name: str, value: Any) -> float | None:
    return None if value is None else check_float(name, value, 1)
