"""The step between the two passes of hires fix: latents of the first size become the input of the second pass.

Does not know how a pass runs. `upscale` is a network that makes pixels larger by its own factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images.arrays import batch
from ..images.png import to_unit_range
from ..request.hires import Hires
from ..request.resolved import ResolvedRequest
from .vae import Codec, VaeTiling

Floats = NDArray[np.float32]
Upscale = Callable[[Floats], Floats]  # [B, H, W, 3] in [0, 1] -> [B, sH, sW, 3]


def second_pass(
    request: ResolvedRequest, hires: Hires, latents: Floats, codec: Codec, tiling: VaeTiling, upscale: Upscale | None
) -> ResolvedRequest:
    """Return the request of the second pass with the enlarged image of the first.

    Args:
        request: the request of the second pass, without an image.
        hires: the size, and how to enlarge.
        latents: the result of the first pass.  # [B, C, h, w]
        codec: the VAE; `tiling` is that of the first pass.
        upscale: the upscaler of a file; None for "latent" and "lanczos".
    """
    if hires.upscaler == "latent":
        height, width = hires.height // codec.factor, hires.width // codec.factor
        return replace(request, image_latents=resize_latents(latents, height, width))
    pixels = to_unit_range(codec.decode(latents, tiling))
    if upscale is not None:
        pixels = upscale(pixels)
    return replace(request, image=batch(list(pixels), len(pixels), hires.height, hires.width))


def resize_latents(latents: Floats, height: int, width: int) -> Floats:
    """Resize each channel by bilinear interpolation.  # [B, C, h, w] -> [B, C, height, width]"""
    planes = [Image.fromarray(plane) for plane in latents.reshape(-1, *latents.shape[2:])]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(resized).reshape(*latents.shape[:2], height, width)
