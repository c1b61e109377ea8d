"""Initial latents of a job: noise, the latents of the input image, and the extra channels of an inpainting U-Net.

Noise is drawn in the order of diffusers, so the same seed gives the same image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.matrix import Draw, SourceLatents
from .vae import Codec, VaeTiling

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class InitialLatents:
    """Noise [B, C, h, w], the latents of the input image, and the extra channels of every sample."""

    noise: Floats
    original: SourceLatents | None
    extra_channels: Floats | None  # [B, 1 + C, h, w]: the mask, and the latents of the masked image


def prepare_latents(plan: Plan, job: Job, codec: Codec, draw: Draw, tiling: VaeTiling) -> InitialLatents:
    """Encode the input images, and draw the noise."""
    task, takes_latents = job.task, job.task.schedule_range.takes_latents
    latents = task.latents
    if task.image is not None and takes_latents:
        latents = codec.encode(task.image, draw, tiling)
    noise = draw()
    if task.inpaint_mask is None:
        original = None if latents is None else SourceLatents(latents=latents)
        return InitialLatents(noise=noise, original=original, extra_channels=None)
    factor = plan.profile.factor
    inpaint_mask = task.inpaint_mask[:, :, ::factor, ::factor]  # nearest pixel of each latent, as in diffusers
    extra_channels = None
    if task.image is not None and (plan.inpaints or takes_latents):
        # The masked area is gray, the middle of the range. Other U-Nets do not use the result, but it takes a draw.
        masked = np.where(task.inpaint_mask, np.float32(0.5), task.image)
        if plan.inpaints:
            channels = [inpaint_mask.astype(np.float32), codec.encode(masked, draw, tiling)]
            extra_channels = np.concatenate(channels, axis=1)
        elif codec.draws:
            draw()
    original = None
    if takes_latents and latents is not None:
        mask = inpaint_mask if task.schedule_range.preserves_unmasked else None
        original = SourceLatents(latents=latents, inpaint_mask=mask)
    return InitialLatents(noise=noise, original=original, extra_channels=extra_channels)
