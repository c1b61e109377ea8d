"""ControlNet inputs of a request: for each ControlNet an image, a scale, and the steps at which it is active.

Knows the number of ControlNets, not the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float
from ..images.arrays import Pixels, as_list, batch, load_image_array


@dataclass(frozen=True, kw_only=True)
class ControlInputs:
    """Inputs of each ControlNet; empty without a control image.

    Attributes:
        images: for each ControlNet one image, or one for each prompt.
        scales: the strength of each.
        spans: the fractions of the steps at which each starts and stops.
    """

    images: Sequence[Sequence[Pixels]]
    scales: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the first image, if any."""
        return (self.images[0][0].shape[0], self.images[0][0].shape[1]) if self.images else None

    @property
    def all_images(self) -> list[Pixels]:
        """The images of all ControlNets."""
        return [image for images in self.images for image in images]

    def batches(self, count: int, height: int, width: int) -> tuple[NDArray[np.float32], ...]:
        """Return the batch of each ControlNet.  # [count, 3, height, width] in [0, 1]"""
        return tuple(batch(images, count, height, width) for images in self.images)


def parse_control_inputs(request: Any, nets: int, prompts: int) -> ControlInputs:
    """Parse the inputs of `nets` ControlNets for `prompts` prompts from a `Request`. Raises `InputError`."""
    images = _images(request.control_image, nets, prompts)
    scales, spans = _per_net("controlnet_conditioning_scale", request, nets, 10), _spans(request, nets)
    return (
        ControlInputs(images=images, scales=scales, spans=spans)
        if images
        else ControlInputs(images=(), scales=(), spans=())
    )


def _images(control_image: Any, nets: int, prompts: int) -> list[list[Pixels]]:
    """Return the images [H, W, 3] of each ControlNet: one, or one for each prompt."""
    if control_image is None:
        return []
    if not nets:
        raise InputError("control_image needs a ControlNet. Load one with load(..., controlnet=FOLDER).")
    per_net = [control_image] if nets == 1 else as_list(control_image)
    if len(per_net) != nets:
        raise InputError(
            f"control_image must be a list with one image for each of {nets} ControlNets, got {len(per_net)}."
        )
    controls = [[load_image_array("control_image", image) for image in as_list(each)] for each in per_net]
    for images in controls:
        if len(images) not in (1, prompts):
            raise InputError(f"pass one control_image, or one for each of {prompts} prompts; got {len(images)}.")
    return controls


def _per_net(name: str, request: Any, nets: int, limit: float) -> tuple[float, ...]:
    """Return a number from 0 to `limit` for each ControlNet; one number serves all."""
    value = getattr(request, name)
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * nets
    if len(numbers) != nets:
        raise InputError(f"pass one {name}, or one for each of {nets} ControlNets; got {len(numbers)}.")
    return tuple(check_float(name, each, limit) for each in numbers)


def _spans(request: Any, nets: int) -> tuple[tuple[float, float], ...]:
    starts, ends = (_per_net(f"control_guidance_{end}", request, nets, 1) for end in ("start", "end"))
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise InputError(f"control_guidance_start={start:g} must come before control_guidance_end={end:g}.")
    return tuple(zip(starts, ends, strict=True))
