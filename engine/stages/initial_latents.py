"""From a job's pictures to what its first step needs: noise, clean latents, and what an inpainting U-Net is told.

Draws are made in the order in which diffusers makes them, so that the same seed gives the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plan.plan import Plan
from ..request.request import Job
from ..sampling.matrix import Draw, Original
from .vae import Codec, Portions

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SettingOut:
    """The noise [B, C, h, w], the picture that is set out from, and channels that go with the latents at every step."""

    noise: Floats
    original: Original | None
    beside: Floats | None  # [B, 1 + C, h, w]: the mask, and the latents of the picture without what is painted over


def set_out(plan: Plan, job: Job, codec: Codec, draw: Draw, portions: Portions) -> SettingOut:
    """Encode what was given, and draw the noise."""
    task, told = job.task, plan.inpaints
    latents = task.latents
    if task.image is not None and task.course.takes_latents:
        latents = codec.encode(task.image, draw, portions)
    noise = draw()
    if task.repaint is None:
        return SettingOut(noise=noise, original=None if latents is None else Original(latents=latents), beside=None)
    factor = plan.profile.factor
    repaint = task.repaint[:, :, ::factor, ::factor]  # the nearest pixel of each latent, as diffusers takes it
    beside = None
    if task.image is not None and (told or task.course.takes_latents):
        # Grey, the middle of the range, where it is painted over. Other U-Nets have no use for it, but it takes a draw.
        hidden = np.where(task.repaint, np.float32(0.5), task.image)
        if told:
            masked = codec.encode(hidden, draw, portions)
            beside = np.concatenate([repaint.astype(np.float32), masked], axis=1)
        elif codec.draws:
            draw()
    if not task.course.takes_latents or latents is None:
        return SettingOut(noise=noise, original=None, beside=beside)
    kept = repaint if task.course.keeps else None
    return SettingOut(noise=noise, original=Original(latents=latents, repaint=kept), beside=beside)
