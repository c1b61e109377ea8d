"""What the pictures of a request make of it: image-to-image, inpainting, taking up another model's latents, or none.

Turns `image`, `mask_image`, `strength` and the hand-over's fractions into arrays of one size and a range of the
schedule. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import number
from ..images.arrays import Pixels, as_list, batch, load_image_array, load_mask_array, resize_image
from ..plan.plan import Plan
from ..sampling.schedule_range import ScheduleRange

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageConditioning:
    """All of it that is not text. Nothing of it is set for text-to-image."""

    schedule_range: ScheduleRange
    image: Floats | None = None  # [B, 3, H, W] in [0, 1]
    latents: Floats | None = None  # [B, C, h, w], where the image was given as latents
    inpaint_mask: NDArray[np.bool_] | None = None  # [B, 1, H, W]
    strength: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """The pictures of a request as they came, and what was said of them."""

    images: Sequence[Pixels]  # one, one a prompt, or none
    latents: Floats | None
    masks: Sequence[Pixels]
    strength: float | None
    begin: float | None
    end: float | None

    def size(self, factor: int) -> tuple[int, int] | None:
        """Height and width of the picture that is given, if one is. `factor` is how many pixels one latent is wide."""
        if self.latents is not None:
            return self.latents.shape[2] * factor, self.latents.shape[3] * factor
        return None if not self.images else (self.images[0].shape[0], self.images[0].shape[1])


def parse_image_inputs(request: Any, plan: Plan, prompts: int, count: int) -> ImageInputs:
    """Read what a `Request` says, of so many prompts and pictures. Raises `InputError`."""
    latents = _latents(request.image, int(plan.latents.dims[1]), prompts, count)
    images = [] if request.image is None or latents is not None else as_list(request.image)
    masks = [] if request.mask_image is None else as_list(request.mask_image)
    for name, pictures in (("image", images), ("mask_image", masks)):
        if not pictures and getattr(request, name) is not None and latents is None:
            raise InputError(f"{name} must be a picture, or a list of pictures that is not empty.")
        if len(pictures) not in (0, 1, prompts):
            raise InputError(f"give one {name}, or one for each of {prompts} prompts; got {len(pictures)}.")
    given = ImageInputs(
        images=[load_image_array("image", picture) for picture in images],
        latents=latents,
        masks=[load_mask_array(picture) for picture in masks],
        strength=_fraction("strength", request.strength),
        begin=_fraction("denoising_start", request.denoising_start),
        end=_fraction("denoising_end", request.denoising_end),
    )
    _check(given, plan.inpaints)
    return given


def condition_on_images(
    given: ImageInputs, plan: Plan, *, steps: int, count: int, height: int, width: int
) -> ImageConditioning:
    """What is to be done, for a batch of `count` pictures. Raises `InputError`."""
    if given.images == [] and given.latents is None:
        return ImageConditioning(schedule_range=ScheduleRange(end=_inside(given.end)))
    size = given.size(plan.profile.factor)
    if given.latents is not None and size != (height, width):
        raise InputError(f"the latents given are of {size} pixels (height, width), and {height, width} was asked for.")
    strength = given.strength if given.strength is not None else 1.0 if given.masks else 0.8
    taken = min(int(steps * strength), steps)
    if taken < 1 and given.begin is None:
        raise InputError(
            f"strength {strength:g} of {steps} steps leaves none to paint; give at least {1 / steps:.2g}, or more "
            "steps. At 0 the picture would stay as it is."
        )
    fresh = bool(given.masks) and strength == 1  # nothing of the picture is under the noise
    origin: Any = "latents" if given.begin is not None else "noise" if fresh else "image"
    schedule_range = ScheduleRange(
        origin=origin,
        skipped=steps - taken if given.begin is None else 0,
        begin=given.begin,
        end=_inside(given.end),
        preserves_unmasked=bool(given.masks) and not plan.inpaints,
    )
    masks = [resize_image(mask, height, width).mean(axis=-1, dtype=np.float64) >= 0.5 for mask in given.masks]
    return ImageConditioning(
        schedule_range=schedule_range,
        image=batch(given.images, count, height, width) if given.images else None,
        latents=None if given.latents is None else given.latents.repeat(count // len(given.latents), axis=0),
        inpaint_mask=np.stack(masks)[:, None].repeat(count // len(masks), axis=0) if masks else None,
        strength=strength if given.begin is None else None,
    )


def _inside(end: float | None) -> float | None:
    """Where the schedule is handed on; at its end it is not."""
    return None if end == 1 else end


def notes_of(
    given: ImageInputs, controls: Sequence[Pixels], task: ImageConditioning, height: int, width: int
) -> list[str]:
    """What a report should say of it: pictures that were resized, masks that leave nothing to do."""
    notes = []
    kinds = {"image": given.images, "mask": given.masks, "control image": controls}
    named = [(name, picture) for name, pictures in kinds.items() for picture in pictures]
    for name, old in dict.fromkeys((name, p.shape[:2]) for name, p in named):
        if old != (height, width):
            notes.append(f"the {name} of {old[1]} x {old[0]} pixels was resized to {width} x {height}")
    if any((picture == picture[0, 0]).all() for picture in controls):
        notes.append("a control image is of one color everywhere: there is nothing in it to steer by")
    if task.inpaint_mask is not None and not task.inpaint_mask.any(axis=(1, 2, 3)).all():
        notes.append("a mask is black everywhere: nothing of its picture is painted over")
    return notes


def _latents(given: Any, channels: int, prompts: int, count: int) -> Floats | None:
    """The image as latents, where it is such an array; what another model's call with output_type="latent" gave."""
    if not (isinstance(given, np.ndarray) and given.ndim == 4 and given.dtype.kind == "f"):
        return None
    if given.shape[1] != channels:
        return None
    if given.shape[-1] in (3, 4) and given.size and given.min() >= 0 and given.max() <= 1:  # pictures of so few rows
        return None
    if not np.isfinite(given).all():
        raise InputError("image takes latents of finite numbers; some of those given are not.")
    if len(given) not in (1, prompts, count):  # of each picture: what a call with num_images handed on
        each = f"{prompts} prompts" if prompts == count else f"{prompts} prompts or {count} pictures"
        raise InputError(f"give latents of one image, or of one for each of {each}; got {len(given)}.")
    return given.astype(np.float32)


def _fraction(name: str, said: Any) -> float | None:
    return None if said is None else number(name, said, 1)


def _check(given: ImageInputs, inpainting: bool) -> None:
    """`InputError` where what was given does not go together."""
    anything = bool(given.images) or given.latents is not None
    for name, said in (
        ("mask_image", given.masks),
        ("strength", given.strength is not None),
        ("denoising_start", given.begin is not None),
    ):
        if said and not anything:
            raise InputError(f"{name} needs a picture to set out from; give one as image=.")
    if given.begin is not None and given.strength is not None:
        raise InputError("strength and denoising_start both say where the schedule is entered; give one of them.")
    if given.begin is not None and given.end is not None and given.begin >= given.end:
        raise InputError(f"denoising_start {given.begin:g} must come before denoising_end {given.end:g}.")
    if inpainting and given.latents is not None:
        raise InputError("this model is told the picture without what is painted over; give it a picture, no latents.")
    if inpainting and not given.masks:
        raise InputError("this model paints in masks alone; give it image= and mask_image= (white is painted over).")
