"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def is_guided(guidance_scale: float) -> bool:
    """At a scale of 1 or less the unconditional half has no part in the result, and is not computed (as diffusers)."""
    return guidance_scale > 1


def guidance_embedding(guidance_scale: float, width: int) -> Floats:
    """What a network that was distilled with its guidance is told of it: sines of (scale - 1) * 1000.  # [width]

    Those of a timestep, as in https://github.com/google-research/vdm, model_vdm.py, where diffusers has them from.
    """
    half = width // 2
    rates = np.exp(np.arange(half) * -(np.log(1e4) / (half - 1))).astype(np.float32)
    angles = np.float32((guidance_scale - 1) * 1000) * rates
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, width % 2)).astype(np.float32)


def guide(output: Floats, guidance_scale: float, rescale: float = 0.0) -> Floats:
    """without + scale * (with - without).  # [2B, C, H, W], unconditional half first -> [B, C, H, W]

    `rescale`, 0 to 1, is how far the result is brought back to the spread of the half with the prompt (Lin et al. 2023,
    arXiv 2305.08891, section 3.4).
    """
    half = len(output) // 2
    without, given = output[:half], output[half:]
    guided = without + np.float32(guidance_scale) * (given - without)
    if rescale == 0:
        return guided
    spread, wide = (each.std(axis=(1, 2, 3), ddof=1, keepdims=True, dtype=np.float64) for each in (given, guided))
    return np.asarray(guided * (rescale * spread / np.maximum(wide, 1e-12) + 1 - rescale), dtype=np.float32)
