"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def is_guided(guidance_scale: float) -> bool:
    """At a scale of 1 or less the unconditional half has no part in the result, and is not computed (as diffusers)."""
    return guidance_scale > 1


def guide(output: Floats, guidance_scale: float) -> Floats:
    """without + scale * (with - without).  # [2B, C, H, W], unconditional half first -> [B, C, H, W]"""
    without, given = np.split(output, 2)
    return without + np.float32(guidance_scale) * (given - without)
