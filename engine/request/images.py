"""Image inputs of a request: image-to-image, inpainting, and the handoff of latents between models.

Turns `image`, `mask_image`, `strength`, `denoising_start` and `denoising_end` into arrays of one size and a range of
the schedule. Does not know networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float
from ..images.arrays import Pixels, as_list, batch, load_image_array, load_mask_array, resize_image
from ..plan.plan import Plan
from ..sampling.schedule_range import ScheduleRange

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageConditioning:
    """Image conditioning of a batch. Text-to-image sets only `schedule_range`."""

    schedule_range: ScheduleRange
    image: Floats | None = None  # [B, 3, H, W] in [0, 1]
    latents: Floats | None = None  # [B, C, h, w], if the request passes latents as the image
    inpaint_mask: NDArray[np.bool_] | None = None  # [B, 1, H, W]
    strength: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """Image arguments of a request, parsed but not resized."""

    images: Sequence[Pixels]  # one, one for each prompt, or none
    latents: Floats | None
    masks: Sequence[Pixels]
    strength: float | None
    begin: float | None
    end: float | None

    def size(self, factor: int) -> tuple[int, int] | None:
        """Return height and width in pixels of the input image, if any. One latent is `factor` pixels wide."""
        if self.latents is not None:
            return self.latents.shape[2] * factor, self.latents.shape[3] * factor
        return None if not self.images else (self.images[0].shape[0], self.images[0].shape[1])


def parse_image_inputs(request: Any, plan: Plan, prompts: int, count: int) -> ImageInputs:
    """Parse the image arguments of a `Request` for `prompts` prompts and `count` images. Raises `InputError`."""
    latents = _latents(request.image, int(plan.latents.dims[1]), prompts, count)
    images = [] if request.image is None or latents is not None else as_list(request.image)
    masks = [] if request.mask_image is None else as_list(request.mask_image)
    for name, values in (("image", images), ("mask_image", masks)):
        if not values and getattr(request, name) is not None and latents is None:
            raise InputError(f"{name} must be an image, or a list of images that is not empty.")
        if len(values) not in (0, 1, prompts):
            raise InputError(f"pass one {name}, or one for each of {prompts} prompts; got {len(values)}.")
    inputs = ImageInputs(
        images=[load_image_array("image", image) for image in images],
        latents=latents,
        masks=[load_mask_array(mask) for mask in masks],
        strength=_fraction("strength", request.strength),
        begin=_fraction("denoising_start", request.denoising_start),
        end=_fraction("denoising_end", request.denoising_end),
    )
    _check(inputs, plan.inpaints)
    return inputs


def condition_on_images(
    inputs: ImageInputs, plan: Plan, *, steps: int, count: int, height: int, width: int
) -> ImageConditioning:
    """Resize the inputs for a batch of `count` images, and choose the schedule range. Raises `InputError`."""
    end = None if inputs.end == 1 else inputs.end  # at the end of the schedule there is no handoff
    if inputs.images == [] and inputs.latents is None:
        return ImageConditioning(schedule_range=ScheduleRange(end=end))
    size = inputs.size(plan.profile.factor)
    if inputs.latents is not None and size != (height, width):
        raise InputError(f"image= contains latents of {size} pixels (height, width); expected {height, width}.")
    strength = inputs.strength if inputs.strength is not None else 1.0 if inputs.masks else 0.8
    preserves_unmasked = bool(inputs.masks) and not plan.inpaints
    masks = [resize_image(mask, height, width).mean(axis=-1, dtype=np.float64) >= 0.5 for mask in inputs.masks]
    return ImageConditioning(
        schedule_range=_schedule_range(inputs, steps, strength, end, preserves_unmasked),
        image=batch(inputs.images, count, height, width) if inputs.images else None,
        latents=None if inputs.latents is None else inputs.latents.repeat(count // len(inputs.latents), axis=0),
        inpaint_mask=np.stack(masks)[:, None].repeat(count // len(masks), axis=0) if masks else None,
        strength=strength if inputs.begin is None else None,
    )


def _schedule_range(
    inputs: ImageInputs, steps: int, strength: float, end: float | None, preserves_unmasked: bool
) -> ScheduleRange:
    remaining = min(int(steps * strength), steps)
    if remaining < 1 and inputs.begin is None:
        hint = f"Use strength >= {1 / steps:.2g} or more steps."
        raise InputError(f"strength={strength:g} with steps={steps} runs no denoising step. {hint}")
    pure_noise = bool(inputs.masks) and strength == 1  # the first latents contain nothing of the image
    return ScheduleRange(
        origin="latents" if inputs.begin is not None else "noise" if pure_noise else "image",
        skipped=steps - remaining if inputs.begin is None else 0,
        begin=inputs.begin,
        end=end,
        preserves_unmasked=preserves_unmasked,
    )


def notes_of(
    inputs: ImageInputs, controls: Sequence[Pixels], task: ImageConditioning, height: int, width: int
) -> list[str]:
    """Return the notes of a report about images: resized images, control images and masks without effect."""
    notes = []
    kinds = {"image": inputs.images, "mask": inputs.masks, "control image": controls}
    for name, old in dict.fromkeys((name, image.shape[:2]) for name, images in kinds.items() for image in images):
        if old != (height, width):
            notes.append(f"the {name} of {old[1]} x {old[0]} pixels was resized to {width} x {height}")
    if any((image == image[0, 0]).all() for image in controls):
        notes.append("a control image has one color everywhere, so it has no effect")
    if task.inpaint_mask is not None and not task.inpaint_mask.any(axis=(1, 2, 3)).all():
        notes.append("a mask is black everywhere, so its image is not changed")
    return notes


def _latents(image: Any, channels: int, prompts: int, count: int) -> Floats | None:
    """Return the image as latents, if it is an array like the result of a call with output_type="latent"."""
    if not (isinstance(image, np.ndarray) and image.ndim == 4 and image.dtype.kind == "f"):
        return None
    if image.shape[1] != channels:
        return None
    if (
        image.shape[-1] in (3, 4) and image.size and image.min() >= 0 and image.max() <= 1
    ):  # a batch of [H, W, C] images
        return None
    if not np.isfinite(image).all():
        raise InputError("image= contains latents that are not finite numbers.")
    if len(image) not in (1, prompts, count):  # `count` is the result of a call with num_images
        each = f"{prompts} prompts" if prompts == count else f"{prompts} prompts or {count} images"
        raise InputError(f"pass latents of one image, or of one for each of {each}; got {len(image)}.")
    return image.astype(np.float32)


def _fraction(name: str, value: Any) -> float | None:
    return None if value is None else check_float(name, value, 1)


def _check(inputs: ImageInputs, inpainting: bool) -> None:
    """Raise `InputError` if the inputs do not fit together, or do not fit an inpainting model."""
    no_image = not inputs.images and inputs.latents is None
    for name, is_set in (
        ("mask_image", inputs.masks),
        ("strength", inputs.strength is not None),
        ("denoising_start", inputs.begin is not None),
    ):
        if no_image and is_set:
            raise InputError(f"{name} needs an input image. Pass one as image=.")
    if inputs.begin is not None and inputs.strength is not None:
        raise InputError("strength and denoising_start both choose the first step. Pass only one of them.")
    if inputs.begin is not None and inputs.end is not None and inputs.begin >= inputs.end:
        raise InputError(f"denoising_start={inputs.begin:g} must come before denoising_end={inputs.end:g}.")
    if inpainting and inputs.latents is not None:
        raise InputError("an inpainting model takes pixels as image=, got latents. Decode them first.")
    if inpainting and not inputs.masks:
        raise InputError("an inpainting model needs image= and mask_image= (white is repainted).")
