"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def guidance_embedding(guidance_scale: float, width: int) -> Floats:
    """Embed the guidance scale for a network with distilled guidance: sines of (scale - 1) * 1000.  # [width]

    The formula is that of a timestep in https://github.com/google-research/vdm, model_vdm.py, which diffusers uses too.
    """
    half = width // 2
    rates = np.exp(np.arange(half) * -(np.log(1e4) / (half - 1))).astype(np.float32)
    angles = np.float32((guidance_scale - 1) * 1000) * rates
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, width % 2)).astype(np.float32)


def guide_by_image(output: Floats, guidance_scale: float, image_scale: float, rescale: float = 0.0) -> Floats:
    """Compute uncond + scale * (cond - image) + image_scale * (image - uncond) (Brooks et al. 2023, arXiv 2211.09800).

    # [3B, C, H, W], without both, with the image, with text and image -> [B, C, H, W]
    """
    uncond, image, cond = np.split(output, 3)
    guided = uncond + np.float32(guidance_scale) * (cond - image) + np.float32(image_scale) * (image - uncond)
    return rescaled(guided, cond, rescale)


def join_regions(output: Floats, shares: Floats, count: int) -> Floats:
    """Join the outputs of regional prompts and of the prompt by the regions' shares of each latent pixel.

    The optimum of MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, equation 5) for views that are the image.

    Args:
        output: the unconditional part under guidance, the part of each region, that of the prompt.  # [N, C, H, W]
        shares: those of each region; their sum is at most 1, and the prompt has the rest.  # [regions, H, W]
        count: the images of each part, B.

    Returns:
        The unconditional part under guidance, and the joined one.  # [B or 2B, C, H, W]
    """
    parts = output.reshape(-1, count, *output.shape[1:])
    weights = np.concatenate([shares, 1 - shares.sum(axis=0, keepdims=True)])[
        :, None, None
    ]  # [regions + 1, 1, 1, H, W]
    joined = (parts[-len(weights) :] * weights).sum(axis=0, keepdims=True)
    return np.concatenate([*parts[: -len(weights)], *joined])


def guide(output: Floats, guidance_scale: float | Floats, rescale: float = 0.0) -> Floats:
    """Compute uncond + scale * (cond - uncond).  # [2B, C, H, W], unconditional half first -> [B, C, H, W]

    An array of scales has one for each frame of a clip.  # [F, 1, 1, 1], with [2B, F, C, H, W] -> [B, F, C, H, W]

    `rescale`, 0 to 1, moves the standard deviation of the result towards that of the conditional half (Lin et al. 2023,
    arXiv 2305.08891, section 3.4).
    """
    half = len(output) // 2
    uncond, cond = output[:half], output[half:]
    return rescaled(uncond + np.asarray(guidance_scale, np.float32) * (cond - uncond), cond, rescale)


def guide_perturbed(
    output: Floats, guidance_scale: float, perturbed_scale: float, rescale: float, count: int
) -> Floats:
    """Compute classifier-free guidance + scale * (cond - perturbed) (Ahn et al. 2024, arXiv 2403.17377).

    # [2B or 3B, C, H, W], the unconditional part if there is one, without self-attention, with the prompt; B is `count`
    """
    perturbed, cond = output[-2 * count : -count], output[-count:]
    guided = cond if len(output) == 2 * count else guide(np.concatenate([output[:count], cond]), guidance_scale)
    return rescaled(guided + np.float32(perturbed_scale) * (cond - perturbed), cond, rescale)


def rescaled(guided: Floats, cond: Floats, rescale: float) -> Floats:
    """Move the standard deviation of a guided output towards that of the conditional one.  # [B, C, H, W]"""
    if rescale == 0:
        return guided
    axes = tuple(range(1, cond.ndim))
    std, guided_std = (each.std(axis=axes, ddof=1, keepdims=True, dtype=np.float64) for each in (cond, guided))
    return np.asarray(guided * (rescale * std / np.maximum(guided_std, 1e-12) + 1 - rescale), dtype=np.float32)
