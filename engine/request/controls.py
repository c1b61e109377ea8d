"""Images that steer a request: for each ControlNet or T2I-Adapter an image, a scale, and the steps of its effect.

Knows the number of networks and the channels of their images, not the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float, check_int
from ..images.arrays import Images, Pixels, as_list, batch, load_image_array, load_mask_array
from ..plan.networks import controlnets_of, t2i_adapters_of
from ..plan.plan import Plan
from .request import OneOrMore, Request


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlInput:
    """One input of a ControlNet: its images, its strength, and the fractions of the U-Net calls that it covers.

    A ControlNet-Union has one for each type of control image, `mode`.
    """

    images: NDArray[np.float32]  # [B, 3, H, W] in [0, 1]; of clips [1, F, 3, H, W]
    scale: float
    start: float
    end: float
    net: int  # the number of the ControlNet
    mode: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterInput:
    """The input of one T2I-Adapter: its images, its strength, and the fraction of the U-Net calls that it covers."""

    images: NDArray[np.float32]  # [B, C, H, W] in [0, 1]
    scale: float
    factor: float


def adapter_channels(plan: Plan) -> list[int]:
    """Return the channels of the image of each T2I-Adapter: 1 for gray, else 3."""
    return [int(plan.components[name].inputs[0].dims[1]) for name in t2i_adapters_of(plan.components)]


Slot = tuple[int, int | None]  # the number of a ControlNet, and of a Union the type of an image


def control_slots(request: Request, plan: Plan) -> list[Slot]:
    """Return what takes a control image each: a ControlNet, or a type of image of a ControlNet-Union.

    Raises `InputError`.
    """
    nets = controlnets_of(plan.components)
    inputs = [{b.name: b.dims[-1] for b in plan.components[name].inputs} for name in nets]
    types = [int(each["control_type"]) if "control_type" in each else 0 for each in inputs]
    value = request.control_mode
    if value is None or not any(types):
        if value is not None:
            message = "control_mode needs a ControlNet-Union. Omit it, or load one with load(..., controlnet=FOLDER)."
            raise InputError(message, argument="control_mode", got=value)
        if any(types) and request.control_image is not None:
            message = f"a ControlNet-Union needs control_mode, the type of its image: 0 to {max(types) - 1}."
            raise InputError(message, argument="control_mode")
        return [(net, None) for net in range(len(nets))]
    entries = [value] if len(nets) == 1 else list(value) if isinstance(value, (list, tuple)) else [value]
    if len(entries) != len(nets):
        message = f"control_mode must have an entry for each of {len(nets)} ControlNets, got {len(entries)}."
        raise InputError(message, argument="control_mode", got=value)
    slots: list[Slot] = []
    for net, (entry, count) in enumerate(zip(entries, types, strict=True)):
        modes = list(entry) if isinstance(entry, (list, tuple)) else [entry]
        if (entry is None) != (count == 0) or not modes or len(set(map(str, modes))) < len(modes):
            expected = f"different numbers from 0 to {count - 1}" if count else "None"
            message = f"control_mode of ControlNet {net} must be {expected}, got {entry!r:.80}."
            raise InputError(message, argument="control_mode", got=entry)
        slots += [(net, None if mode is None else check_int("control_mode", mode, 0, count - 1)) for mode in modes]
    return slots


def load_control_images(control_image: Images, nets: int, prompts: int, noun: str = "prompts") -> list[list[Pixels]]:
    """Return the images [H, W, 3] of each of `nets` slots: one, or one for each of `prompts` prompts (or frames).

    Raises `InputError`. Without control images the list is empty.
    """
    if control_image is not None and not nets:
        raise InputError(
            "control_image needs a ControlNet. Load one with load(..., controlnet=FOLDER).", argument="control_image"
        )
    return _images_of("control_image", control_image, "ControlNets", nets, prompts, noun)


def load_adapter_images(adapter_image: Images, channels: Sequence[int], prompts: int) -> list[list[Pixels]]:
    """Return the images [H, W, 3] of each T2I-Adapter: one, or one for each of `prompts` prompts.

    `channels` has the channels of each adapter's image: 1 for gray. Raises `InputError`.
    """
    if adapter_image is not None and not channels:
        message = "adapter_image needs a T2I-Adapter. Load one with load(..., t2i_adapter=FOLDER)."
        raise InputError(message, argument="adapter_image")
    images = _images_of("adapter_image", adapter_image, "T2I-Adapters", len(channels), prompts)
    return [
        [load_mask_array(image, "adapter_image") for image in each] if count == 1 else each
        for each, count in zip(images, channels, strict=bool(images))
    ]


def _images_of(
    name: str, value: Images, kind: str, nets: int, prompts: int, noun: str = "prompts"
) -> list[list[Pixels]]:
    if value is None:
        return []
    per_net = [value] if nets == 1 else as_list(value)
    if len(per_net) != nets:
        raise InputError(
            f"{name} must be a list with one image for each of {nets} {kind}, got {len(per_net)}.",
            argument=name,
            got=len(per_net),
        )
    images = [[load_image_array(name, image) for image in as_list(each)] for each in per_net]
    for each in images:
        if len(each) not in (1, prompts):
            raise InputError(
                f"pass one {name}, or one for each of {prompts} {noun}; got {len(each)}.",
                argument=name,
                got=len(each),
            )
    return images


def control_inputs(
    request: Request,
    slots: Sequence[Slot],
    images: Sequence[Sequence[Pixels]],
    *,
    count: int,
    height: int,
    width: int,
    frames: int | None = None,
) -> tuple[ControlInput, ...]:
    """Return the input of each slot for a batch of `count` images, or of clips with `frames` images each; empty without
    images. Raises `InputError`."""
    nets = len(slots)
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
    batches = [batch(each, frames or count, height, width) for each in images]
    batches = batches if frames is None else [each[None] for each in batches]
    return tuple(
        ControlInput(images=each, scale=scale, start=start, end=end, net=net, mode=mode)
        for each, scale, start, end, (net, mode) in zip(batches, scales, starts, ends, slots, strict=bool(images))
    )


def adapter_inputs(
    request: Request,
    channels: Sequence[int],
    images: Sequence[Sequence[Pixels]],
    *,
    count: int,
    height: int,
    width: int,
) -> tuple[AdapterInput, ...]:
    """Return the input of each T2I-Adapter for a batch of `count` images; empty without images. Raises `InputError`."""
    nets = len(channels)
    scales = _per_net("adapter_conditioning_scale", request.adapter_conditioning_scale, nets, 10, "T2I-Adapters")
    factor = check_float("adapter_conditioning_factor", request.adapter_conditioning_factor, 1)
    return tuple(
        AdapterInput(images=batch(each, count, height, width)[:, :depth], scale=scale, factor=factor)
        for each, depth, scale in zip(images, channels, scales, strict=bool(images))
    )


def _per_net(name: str, value: OneOrMore, nets: int, limit: float, kind: str = "ControlNets") -> list[float]:
    """Return a number from 0 to `limit` for each network; one number serves all."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * nets
    if len(numbers) != nets:
        raise InputError(
            f"pass one {name}, or one for each of {nets} {kind}; got {len(numbers)}.",
            argument=name,
            got=len(numbers),
        )
    return [check_float(name, each, limit) for each in numbers]


def modes_of(controls: Sequence[ControlInput]) -> list[Any]:
    """Return `control_mode` as a call has it: of one ControlNet its modes, of several an entry for each."""
    nets: dict[int, list[int | None]] = {}
    for each in controls:
        nets.setdefault(each.net, []).append(each.mode)
    entries = [None if modes == [None] else modes for modes in nets.values()]
    return entries[0] or [] if len(entries) == 1 else entries
