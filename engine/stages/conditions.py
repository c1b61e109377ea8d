"""The input image as a condition of the U-Net: further channels of its sample, and its inputs that stay the same.

For models with a `calotype.plan.image_input.ImageInput` other than inpainting. Does not know steps or backends.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..images.depth import estimate_depth
from ..plan.plan import Plan
from ..request.conditions import normalized_depths
from ..request.resolved import ResolvedRequest
from ..request.video.clip import ImageClip
from ..sampling.matrix import Sampler
from ..sampling.noise import Noise
from .vae import Codec

Floats = NDArray[np.float32]
_LEVEL_WIDTH = 64  # of each half of the latent upscaler's embedding of a noise level: cosines and sines


def image_channels(plan: Plan, request: ResolvedRequest, codec: Codec, draw: Noise) -> Floats | None:
    """Return the channels that the U-Net takes besides the noisy latents; None if they are none, or a mask.

    They are those of all rows under guidance by the image: the first part has no image.
    # [B or N, C, h, w], of a clip [B or N, F, C, h, w]
    """
    takes = plan.image_input
    if takes is None or takes.kind in ("mask", "vision"):
        return None
    if takes.kind == "depth":
        return _depth(plan, request)
    if takes.kind == "pixels":
        return _noisy_pixels(request, takes.signal, draw)
    if takes.kind == "video":
        return _of_each_frame(request, codec, draw)
    small = takes.kind == "latents"
    latents = request.image_latents
    if latents is None:
        assert request.image is not None  # `check_condition`
        shape = (codec.channels, *(side // plan.profile.factor for side in request.image.shape[2:]))
        latents = codec.encode(request.image, (lambda: draw.of(shape)) if small else None)
    if small:  # nearest neighbors
        return latents.repeat(2, axis=2).repeat(2, axis=3)
    latents = codec.unscaled(latents) * np.float32(takes.scale)
    return np.concatenate([np.zeros_like(latents), latents, latents]) if request.unprompted_rows == 2 else latents


def _depth(plan: Plan, request: ResolvedRequest) -> Floats:
    if request.depth is not None:
        return request.depth
    assert request.image is not None  # `check_condition`
    assert plan.depth_estimator is not None
    height, width = (side // plan.profile.factor for side in (request.height, request.width))
    unique, places = np.unique(request.image, axis=0, return_inverse=True)
    return normalized_depths(estimate_depth(plan.depth_estimator, unique), height, width)[places.reshape(-1)]


def _of_each_frame(request: ResolvedRequest, codec: Codec, draw: Noise) -> Floats:
    """Return the latents of the image with noise, for each frame of a clip; zeros first under guidance.

    # [N, F, C, h, w]
    """
    assert request.image is not None  # `check_condition`
    assert isinstance(request.clip, ImageClip)
    noise = draw.on_inputs(request.sources, request.image.shape[1:])
    strength = np.float32(request.clip.noise_aug_strength / 2)  # the noise of pixels from -1 to 1
    latents = codec.unscaled(codec.encode(request.image + strength * noise))
    latents = latents[:, None].repeat(request.clip.frames, axis=1)
    return np.concatenate([np.zeros_like(latents), latents]) if request.guided else latents


def _noisy_pixels(request: ResolvedRequest, signal: tuple[float, ...], draw: Noise) -> Floats:
    assert request.image is not None  # `check_condition`
    assert request.noise_level is not None
    kept = signal[request.noise_level]
    pixels = request.image * np.float32(2) - np.float32(1)
    noise = draw.of(request.image.shape[1:])
    return np.asarray(np.float32(kept**0.5) * pixels + np.float32((1 - kept) ** 0.5) * noise, dtype=np.float32)


def with_image(plan: Plan, request: ResolvedRequest, conditioning: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the inputs of the U-Net that stay the same, completed by those of the image.

    Args:
        plan: the model's plan.
        request: the request of B images.
        conditioning: the inputs from text, the rows without the prompt first.  # [B or 2B, ...]
    """
    arrays = dict(conditioning)
    if plan.takes("latents"):  # the embedding of the noise level 0, and the pooled text
        pooled = arrays.pop("text_embeds")
        level = np.repeat(np.array([[1, 0]], dtype=np.float32), _LEVEL_WIDTH, axis=1).repeat(len(pooled), axis=0)
        arrays["timestep_cond"] = np.concatenate([level, pooled.astype(np.float32)], axis=1)
    if request.unprompted_rows == 2:
        count = len(request.seeds)
        arrays = {name: np.concatenate([array[:count], array]) for name, array in arrays.items()}
    return arrays


def with_perturbed(request: ResolvedRequest, conditioning: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the inputs from text with the rows of perturbed attention guidance, which have the prompt's text.

    # [N - B, ...] -> [N, ...]
    """
    if request.perturbed is None:
        return dict(conditioning)
    count = len(request.seeds)
    return {name: np.concatenate([array, array[-count:]]) for name, array in conditioning.items()}


def network_timesteps(sampler: Sampler) -> NDArray[np.float64]:
    """Return the timesteps that the latent upscaler takes: log(sigma) / 4 (Karras et al. 2022, table 1).

    Its output in their terms is the negative velocity, so the sampler predicts velocities: the clean latents are
    (input - sigma * velocity) / sqrt(sigma^2 + 1), which gives sigma.  # -> [calls]
    """
    return np.asarray(np.log(-sampler.preview[:, 1] / sampler.preview[:, 0]) / 4)
