"""The reference of a call whose images share a style: a given image as the first row of each part of the batch.

Its latents at each call come from DDIM inversion, so the sampler does not see it. Knows the U-Net's inputs. Does not
know guidance or samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends import LoadedComponent
from ...backends.session import DenoisingSession, NetworkCall, NetworkCalls
from ...errors import Cancelled
from ...images.arrays import batch
from ...plan.controls.t2i_adapter import STATE
from ...plan.image_prompts.layers import SCALE
from ...plan.image_prompts.style import STYLE
from ...request.conditioning import NO_STATES
from ...request.resolved import ResolvedRequest
from .inversion import inverted

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


def style_offsets(count: int, parts: int) -> NDArray[np.int64]:
    """Return the U-Net's input with which all `count` rows of each part take the style of the first.  # [N]"""
    return np.tile(-np.arange(count, dtype=np.int64), parts)


def alone(request: ResolvedRequest) -> ResolvedRequest:
    """Return the request of the reference by itself: its prompt, and the negative prompt of the first image."""
    style = request.style
    assert style is not None
    return replace(
        request,
        prompts=(style.prompt,),
        prompts_2=(style.prompt,),
        negative_prompts=request.negative_prompts[:1],
        negative_prompts_2=request.negative_prompts_2[:1],
        tokens=style.tokens,
        precomputed=NO_STATES,
        seeds=request.seeds[:1],
        style=None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StyleReference:
    """A given image as a row of the batch.

    Attributes:
        latents: its noisy latents at each call.  # [calls, C, h, w]
        inputs: its inputs of the U-Net that stay the same, for each part of the guidance.  # [parts, ...]
        extra_channels: further channels of its sample, for an inpainting U-Net.  # [1, C, h, w]
    """

    latents: Floats
    inputs: Arrays
    extra_channels: Floats | None

    def constants(self, arrays: Arrays, parts: int) -> dict[str, NDArray[Any]]:
        """Return the inputs of the batch with the reference before each part.  # [N, ...] -> [N + parts, ...]"""
        return {name: before_each(array, self.inputs.get(name), parts) for name, array in arrays.items()}

    def sample(self, sample: Floats, call: int) -> Floats:
        """Return the sample with the reference before it.  # [B, C, h, w] -> [B + 1, C, h, w]"""
        own = [self.latents[call : call + 1], *([] if self.extra_channels is None else [self.extra_channels])]
        return np.concatenate([np.concatenate(own, axis=1), sample])

    def changing(self, arrays: Arrays, parts: int) -> dict[str, NDArray[Any]]:
        """Return what ControlNets add, which is nothing for the reference.  # [N, ...] -> [N + parts, ...]"""
        return {name: before_each(array, None, parts) for name, array in arrays.items()}


def before_each(array: NDArray[Any], first: NDArray[Any] | None, parts: int) -> NDArray[Any]:
    """Return an array with a row before each of its parts: that of `first`, of as many or more parts, or zeros."""
    rows = np.zeros_like(array[:parts]) if first is None else first[len(first) - parts :]
    pairs = zip(rows, np.split(array, parts), strict=True)
    return np.concatenate([np.concatenate([row[None], part]) for row, part in pairs])


def without_first(output: Floats, parts: int) -> Floats:
    """Return an output without the first row of each part.  # [N + parts, ...] -> [N, ...]"""
    return np.concatenate([part[1:] for part in np.split(output, parts)])


def style_reference(
    request: ResolvedRequest,
    scheduler: Mapping[str, Any],
    timesteps: NDArray[Any],
    encode: Callable[[Floats], Floats],
    reads: StyleInputs,
) -> NetworkCalls[StyleReference]:
    """Yield the calls of the U-Net that invert the style image of a request, and return its `StyleReference`.

    Args:
        request: the request.
        scheduler: the config of the model's scheduler.
        timesteps: those of the call, in its order.  # [calls]
        encode: turns pixels in [0, 1] into latents.  # [1, 3, H, W] -> [1, C, h, w]
        reads: the inputs of the U-Net.

    Raises:
        Cancelled: the call is to stop.
    """
    assert request.style is not None
    assert request.style.image is not None
    clean = encode(batch([request.style.image], 1, request.height, request.width))
    extra = None
    if reads.has_mask:  # an inpainting model sees all of the reference
        extra = np.concatenate([np.zeros_like(clean[:, :1]), clean], axis=1)
    rising, places = np.unique(np.asarray(timesteps, np.float32), return_inverse=True)
    session = DenoisingSession(reads.unet, reads.of_one(), rising, guided=False)

    def denoise(i: int, latents: Floats) -> NetworkCalls[Floats]:
        if reads.stops():
            raise Cancelled("cancelled during the inversion of style_image.", step=0)
        sample = latents if extra is None else np.concatenate([latents, extra], axis=1)
        return (yield NetworkCall(session, i, sample, {}))["out_sample"]

    latents = yield from inverted(clean, rising, scheduler, denoise)
    return StyleReference(latents=latents[places], inputs=reads.inputs, extra_channels=extra)


@dataclass(frozen=True, kw_only=True, eq=False)
class StyleInputs:
    """The U-Net with the inputs of the reference by itself.

    Attributes:
        unet: the U-Net.
        inputs: those that stay the same, for each part of the guidance.  # [parts, ...]
        residuals: zeros in place of what ControlNets add.  # [1, ...]
        has_mask: whether the sample has the channels of an inpainting model.
        stops: returns whether the call is to stop.
    """

    unet: LoadedComponent
    inputs: Arrays
    residuals: Arrays
    has_mask: bool
    stops: Callable[[], bool]

    def of_one(self) -> dict[str, NDArray[Any]]:
        """Return the inputs of a run without guidance.  # [1, ...]"""
        own = {name: array[-1:] for name, array in self.inputs.items()}
        return {**own, **self.residuals, STYLE: np.zeros(1, np.int64)}


def inputs_of_reference(arrays: Arrays, text: Arrays, count: int) -> dict[str, NDArray[Any]]:
    """Return the reference's inputs: its own text, no image prompts or T2I-Adapters, else those of the first image.

    # arrays [N, ...] of `count` images, text [parts, ...] -> [parts, ...]
    """
    first = {name: array[::count] for name, array in arrays.items()}
    absent = {name: np.zeros_like(array) for name, array in first.items() if name == SCALE or name.startswith(STATE)}
    return {**first, **absent, **text}
