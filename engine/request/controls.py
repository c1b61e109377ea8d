"""ControlNet inputs of a request: for each ControlNet an image, a scale, and the steps at which it is active.

Knows the number of ControlNets, not the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float
from ..images.arrays import Images, Pixels, as_list, batch, load_image_array
from .request import OneOrMore, Request


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlInput:
    """The input of one ControlNet: its images, its strength, and the fractions of the U-Net calls that it covers."""

    images: NDArray[np.float32]  # [B, 3, H, W] in [0, 1]
    scale: float
    start: float
    end: float


def load_control_images(control_image: Images, nets: int, prompts: int) -> list[list[Pixels]]:
    """Return the images [H, W, 3] of each of `nets` ControlNets: one, or one for each of `prompts` prompts.

    Raises `InputError`. Without control images the list is empty.
    """
    if control_image is None:
        return []
    if not nets:
        raise InputError(
            "control_image needs a ControlNet. Load one with load(..., controlnet=FOLDER).", argument="control_image"
        )
    per_net = [control_image] if nets == 1 else as_list(control_image)
    if len(per_net) != nets:
        raise InputError(
            f"control_image must be a list with one image for each of {nets} ControlNets, got {len(per_net)}.",
            argument="control_image",
            got=len(per_net),
        )
    controls = [[load_image_array("control_image", image) for image in as_list(each)] for each in per_net]
    for images in controls:
        if len(images) not in (1, prompts):
            raise InputError(
                f"pass one control_image, or one for each of {prompts} prompts; got {len(images)}.",
                argument="control_image",
                got=len(images),
            )
    return controls


def control_inputs(
    request: Request, nets: int, images: Sequence[Sequence[Pixels]], *, count: int, height: int, width: int
) -> tuple[ControlInput, ...]:
    """Return the input of each ControlNet for a batch of `count` images; empty without images. Raises `InputError`."""
    scales = _per_net("controlnet_conditioning_scale", request.controlnet_conditioning_scale, nets, 10)
    starts = _per_net("control_guidance_start", request.control_guidance_start, nets, 1)
    ends = _per_net("control_guidance_end", request.control_guidance_end, nets, 1)
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise InputError(
                f"control_guidance_start={start:g} must come before control_guidance_end={end:g}.",
                argument="control_guidance_start",
                got=start,
            )
    return tuple(
        ControlInput(images=batch(each, count, height, width), scale=scale, start=start, end=end)
        for each, scale, start, end in zip(images, scales, starts, ends, strict=bool(images))
    )


def _per_net(name: str, value: OneOrMore, nets: int, limit: float) -> list[float]:
    """Return a number from 0 to `limit` for each ControlNet; one number serves all."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * nets
    if len(numbers) != nets:
        raise InputError(
            f"pass one {name}, or one for each of {nets} ControlNets; got {len(numbers)}.",
            argument=name,
            got=len(numbers),
        )
    return [check_float(name, each, limit) for each in numbers]
