"""From a job's pictures to what its first step needs: noise, clean latents, and what an inpainting U-Net is told.

Draws are made in the order in which diffusers makes them, so that the same seed gives the same picture.
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
    """The noise [B, C, h, w], the picture that is set out from, and channels that go with the latents at every step."""

    noise: Floats
    original: SourceLatents | None
    extra_channels: (
        Floats | None
    )  # [B, 1 + C, h, w]: the mask, and the latents of the picture without what is painted over


def prepare_latents(plan: Plan, job: Job, codec: Codec, draw: Draw, tiling: VaeTiling) -> InitialLatents:
    """Encode what was given, and draw the noise."""
    task, told = job.task, plan.inpaints
    latents = task.latents
    if task.image is not None and task.schedule_range.takes_latents:
        latents = codec.encode(task.image, draw, tiling)
    noise = draw()
    if task.inpaint_mask is None:
        return InitialLatents(
            noise=noise, original=None if latents is None else SourceLatents(latents=latents), extra_channels=None
        )
    factor = plan.profile.factor
    inpaint_mask = task.inpaint_mask[
        :, :, ::factor, ::factor
    ]  # the nearest pixel of each latent, as diffusers takes it
    extra_channels = None
    if task.image is not None and (told or task.schedule_range.takes_latents):
        # Grey, the middle of the range, where it is painted over. Other U-Nets have no use for it, but it takes a draw.
        hidden = np.where(task.inpaint_mask, np.float32(0.5), task.image)
        if told:
            masked = codec.encode(hidden, draw, tiling)
            extra_channels = np.concatenate([inpaint_mask.astype(np.float32), masked], axis=1)
        elif codec.draws:
            draw()
    if not task.schedule_range.takes_latents or latents is None:
        return InitialLatents(noise=noise, original=None, extra_channels=extra_channels)
    kept = inpaint_mask if task.schedule_range.preserves_unmasked else None
    return InitialLatents(
        noise=noise, original=SourceLatents(latents=latents, inpaint_mask=kept), extra_channels=extra_channels
    )
