"""What a request says of its ControlNets: a picture for each, how strongly it steers, and between which steps.

Knows nothing of networks but how many there are.
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
    """For each ControlNet; nothing where no picture was given, and they have no part.

    Attributes:
        pictures: one, or one a prompt.
        scales: how strongly each steers.
        spans: the fractions of the steps at which each begins and ends.
    """

    pictures: Sequence[Sequence[Pixels]]
    scales: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the first picture, if there is one."""
        return (self.pictures[0][0].shape[0], self.pictures[0][0].shape[1]) if self.pictures else None

    @property
    def all_pictures(self) -> list[Pixels]:
        """Of all ControlNets."""
        return [picture for each in self.pictures for picture in each]

    def batches(self, count: int, height: int, width: int) -> tuple[NDArray[np.float32], ...]:
        """A picture for each of the batch, for each ControlNet.  # [count, 3, height, width] in [0, 1]"""
        return tuple(batch(pictures, count, height, width) for pictures in self.pictures)


def parse_control_inputs(request: Any, nets: int, prompts: int) -> ControlInputs:
    """Read what a `Request` says for so many ControlNets. Raises `InputError`."""
    pictures = _pictures(request.control_image, nets, prompts)
    scales, spans = _per_net("controlnet_conditioning_scale", request, nets, 10), _spans(request, nets)
    return (
        ControlInputs(pictures=pictures, scales=scales, spans=spans)
        if pictures
        else ControlInputs(pictures=(), scales=(), spans=())
    )


def _pictures(given: Any, nets: int, prompts: int) -> list[list[Pixels]]:
    """For each ControlNet its pictures [H, W, 3]: one, or one a prompt. Nothing where none was given."""
    if given is None:
        return []
    if not nets:
        raise InputError("control_image needs a ControlNet; name one when loading: load(..., controlnet=FOLDER).")
    per_net = [given] if nets == 1 else as_list(given)
    if len(per_net) != nets:
        raise InputError(f"give a control_image for each of {nets} ControlNets, in a list; got {len(per_net)}.")
    controls = [[load_image_array("control_image", picture) for picture in as_list(each)] for each in per_net]
    for pictures in controls:
        if len(pictures) not in (1, prompts):
            raise InputError(f"give one control_image, or one for each of {prompts} prompts; got {len(pictures)}.")
    return controls


def _per_net(name: str, request: Any, nets: int, most: float) -> tuple[float, ...]:
    """A number for each ControlNet, of one for all or one for each."""
    given = getattr(request, name)
    numbers = list(given) if isinstance(given, (list, tuple)) else [given] * nets
    if len(numbers) != nets:
        raise InputError(f"give one {name}, or one for each of {nets}; got {len(numbers)}.")
    return tuple(check_float(name, each, most) for each in numbers)


def _spans(request: Any, nets: int) -> tuple[tuple[float, float], ...]:
    starts, ends = (_per_net(f"control_guidance_{end}", request, nets, 1) for end in ("start", "end"))
    for start, end in zip(starts, ends, strict=True):
        if start >= end:
            raise InputError(f"control_guidance_start {start:g} must come before control_guidance_end {end:g}.")
    return tuple(zip(starts, ends, strict=True))
