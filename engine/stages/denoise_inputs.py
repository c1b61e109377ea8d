"""Everything that the steps of one batch need: prepared once, for the loop and for the CUDA graph alike.

Noise is drawn in the order of diffusers, so the same seed gives the same image.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..request.video.clip import ImageClip
from ..sampling.guidance import guidance_embedding
from ..sampling.matrix import Draw, InpaintMask, SourceLatents, is_soft
from ..sampling.noise import BatchNoise, GeneratorNoise, Noise
from ..system.trace import Stopwatch
from .conditions import image_channels
from .vae import Codec, VaeTiling

Floats = NDArray[np.float32]
_ENCODED_FRAMES = 16  # of an input clip, with one draw of noise


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiseInputs:
    """A batch of B images. N is 2B under guidance, the unconditional half first; else B.

    Attributes:
        noise: the initial noise.  # [B, C, h, w], of a clip [B, F, C, h, w], or with motion modules [B, C, F, h, w]
        draw: returns the noise after it.
        source: the latents of the input images, and the area to generate anew; None if the schedule starts from noise.
        extra_channels: further channels of every sample: for an inpainting U-Net the mask and the latents of the masked
            image, for others what `conditions` makes of the image.  # [B or N, C, h, w]
        micro_conditioning: further inputs of the U-Net of some families: `time_ids`, `timestep_cond`, `class_labels`
            and `added_time_ids`.  # [N, ...]
        tiling: how the VAE takes the batch.
    """

    noise: Floats
    draw: Draw
    source: SourceLatents | None
    extra_channels: Floats | None
    micro_conditioning: dict[str, NDArray[Any]]
    tiling: VaeTiling


def prepare(plan: Plan, request: ResolvedRequest, codec: Codec, watch: Stopwatch) -> DenoiseInputs:
    """Encode the input images, and draw the noise."""
    count = len(request.seeds)
    tiling = codec.tiling_for(request)
    frames = 1 if request.clip is None else request.clip.frames
    sizes = plan.profile.sizes(batch=count, height=request.height, width=request.width, frames=frames)
    shape = plan.latents.shape(sizes)[1:]
    draw = GeneratorNoise(request.generators, count, shape) if request.generators else BatchNoise(request.seeds, shape)
    encodes = request.image is not None or request.video is not None
    with watch.stage("encode") if encodes else nullcontext():
        of_image = image_channels(plan, request, codec, draw) if plan.image_input else None  # draws its noise first
        noise, source, extra_channels = _latents(plan, request, codec, draw, tiling)
    return DenoiseInputs(
        noise=noise,
        draw=draw,
        source=source,
        extra_channels=extra_channels if of_image is None else of_image,
        micro_conditioning=_micro_conditioning(plan, request),
        tiling=tiling,
    )


def _latents(
    plan: Plan, request: ResolvedRequest, codec: Codec, draw: Noise, tiling: VaeTiling
) -> tuple[Floats, SourceLatents | None, Floats | None]:
    """Return the initial noise, the latents of the input images, and the extra channels of an inpainting U-Net."""
    if request.video is not None:
        return *_of_video(request.video[0], request, codec, draw), None
    takes_latents, latents = request.schedule_range.takes_latents, request.image_latents
    latents = latents if takes_latents else None
    if request.image is not None and takes_latents:
        latents = _encoded(request.image, codec, draw, tiling, request)
    noise = draw() if request.noise is None else request.noise
    source = None if latents is None else SourceLatents(latents=latents)
    if request.inpaint_mask is None:
        return noise, source, None
    inpaint_mask = _mask_of_latents(request.inpaint_mask, plan.profile.factor)
    inpaint_mask = inpaint_mask.repeat(len(noise) // len(inpaint_mask), axis=0)
    extra_channels = None
    if request.image is not None and (plan.inpaints or takes_latents):
        # The masked area is gray, the middle of the range. Other U-Nets do not use the result, but it takes a draw.
        masked = np.where(request.inpaint_mask, np.float32(0.5), request.image)
        if plan.inpaints:
            channels = [inpaint_mask.astype(np.float32), _encoded(masked, codec, draw, tiling, request)]
            extra_channels = np.concatenate(channels, axis=1)
        elif codec.draws:
            draw.for_inputs(len(masked), each=False)
    if source is not None and takes_latents and request.schedule_range.preserves_unmasked:
        source = replace(source, inpaint_mask=inpaint_mask)
    return noise, source if takes_latents else None, extra_channels


def _of_video(frames: Floats, request: ResolvedRequest, codec: Codec, draw: Noise) -> tuple[Floats, SourceLatents]:
    """Return the initial noise and the latents of an input clip. As in diffusers, both have frames before channels
    until the noise is added, and sixteen frames are encoded with one draw.  # [F, 3, H, W] -> twice [B, C, F, h, w]"""
    height, width = (side // codec.factor for side in frames.shape[2:])
    parts = []
    for start in range(0, len(frames), _ENCODED_FRAMES):
        some = frames[start : start + _ENCODED_FRAMES]

        def drawn(count: int = len(some)) -> Floats:  # the encoder repeats each frame for all clips
            noise = draw.of((count, codec.channels, height, width)).swapaxes(0, 1)
            return noise.reshape(-1, *noise.shape[2:])

        latents = codec.encode(some, drawn, VaeTiling(sliced=True))
        parts.append(latents.reshape(len(some), -1, *latents.shape[1:]).swapaxes(0, 1))
    latents = np.concatenate(parts, axis=1)
    latents = latents.repeat(len(request.seeds) // len(latents), axis=0)  # an encoder without a draw gives one clip
    noise = draw.of(latents.shape[1:]).swapaxes(1, 2) if request.noise is None else request.noise
    return np.ascontiguousarray(noise), SourceLatents(latents=np.ascontiguousarray(latents.swapaxes(1, 2)))


def _encoded(images: Floats, codec: Codec, draw: Noise, tiling: VaeTiling, request: ResolvedRequest) -> Floats:
    """Encode input images, and repeat their latents to the batch.  # [n, 3, H, W] -> [B, C, h, w]"""
    each = request.inpaint_mask is None
    latents = codec.encode(images, lambda: draw.for_inputs(len(images), each=each), tiling)
    return latents.repeat(len(request.seeds) // len(latents), axis=0)


def _mask_of_latents(inpaint_mask: InpaintMask, factor: int) -> InpaintMask:
    """Return a mask of the latents: the nearest pixel as in diffusers, and the mean of a soft mask."""
    if not is_soft(inpaint_mask):
        return inpaint_mask[:, :, ::factor, ::factor]
    count, _, height, width = inpaint_mask.shape
    blocks = inpaint_mask.reshape(count, 1, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(3, 5)), dtype=np.float32)


def _micro_conditioning(plan: Plan, request: ResolvedRequest) -> dict[str, NDArray[Any]]:
    """Return the inputs of some families, as SDXL's `time_ids`, or the guidance embedding of a distilled U-Net."""
    count, inputs = len(request.seeds), {b.name: b for b in plan.components["unet"].inputs}
    negatives = count if request.guided else 0
    rows = negatives + count * (request.rows - request.unprompted_rows)  # `with_image` adds those with the image
    arrays: dict[str, NDArray[Any]] = {}
    if request.noise_level is not None:
        arrays["class_labels"] = np.full(rows, request.noise_level, dtype=np.int64)
    if request.sizes is not None:  # [N, 6] or [N, 5]
        is_refiner = inputs["time_ids"].dims[1] == 5
        positive, negative = request.sizes.time_ids(request.height, request.width, is_refiner=is_refiner)
        arrays["time_ids"] = np.array([*[negative] * negatives, *[positive] * (rows - negatives)], dtype=np.float32)
    if isinstance(request.clip, ImageClip):
        arrays["added_time_ids"] = np.tile(np.array(request.clip.added_time_ids, np.float32), (rows, 1))
    if "timestep_cond" in inputs and not plan.takes("latents"):
        embedding = guidance_embedding(request.guidance_scale, int(inputs["timestep_cond"].dims[1]))
        arrays["timestep_cond"] = np.tile(embedding, (rows, 1))
    return arrays
