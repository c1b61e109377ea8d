"""Guidance methods besides the classifier-free one: adaptive projected guidance (APG) and CFG-Zero*.

Both work on the network's outputs, as in diffusers' guiders. Does not know schedulers or networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .guidance import rescaled

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
_AXES = (1, 2, 3)  # of one image


@dataclass(kw_only=True)
class ProjectedGuidance:
    """APG (Sadat et al. 2024, arXiv 2410.02416): limits the guidance and its part along the conditional output.

    Attributes:
        eta: the share of that part that stays; 0 removes what saturates colors.
        momentum: the share of the earlier guidance that is added; below 0 it is subtracted.
        rescale: the largest L2 norm of an image's guidance; 0 is no limit.
    """

    eta: float
    momentum: float
    rescale: float
    _average: Doubles | float = field(default=0.0, init=False)

    def __call__(self, uncond: Floats, cond: Floats, scale: float) -> Floats:
        """Return the guided output of the next step.  # [B, C, H, W] each"""
        self._average = cond.astype(np.float64) - uncond + self.momentum * self._average
        guidance = np.asarray(self._average)
        if self.rescale > 0:
            guidance = guidance * np.minimum(1, self.rescale / np.maximum(_norm(guidance), 1e-12))
        direction = cond / np.maximum(_norm(cond.astype(np.float64)), 1e-12)
        parallel = (guidance * direction).sum(axis=_AXES, keepdims=True) * direction
        return np.asarray(uncond + scale * (guidance + (self.eta - 1) * parallel), dtype=np.float32)


def zero_star(uncond: Floats, cond: Floats, scale: float) -> Floats:
    """Scale the unconditional output to fit the conditional one (CFG-Zero*: Fan et al. 2025, arXiv 2503.18886).

    # [B, C, H, W] each -> [B, C, H, W]
    """
    wide = uncond.astype(np.float64)
    factor = (cond * wide).sum(axis=_AXES, keepdims=True) / ((wide**2).sum(axis=_AXES, keepdims=True) + 1e-8)
    scaled = wide * factor
    return np.asarray(scaled + scale * (cond - scaled), dtype=np.float32)


def guide_by_method(
    output: Floats, guidance_scale: float, rescale: float, projected: ProjectedGuidance | None
) -> Floats:
    """Combine the halves of an output: by APG if `projected` is set, else by CFG-Zero*.

    # [2B, C, H, W], unconditional half first -> [B, C, H, W]
    """
    uncond, cond = np.split(output, 2)
    guided = (zero_star if projected is None else projected)(uncond, cond, guidance_scale)
    return rescaled(guided, cond, rescale)


def _norm(arrays: Doubles) -> Doubles:
    return np.asarray(np.sqrt((arrays**2).sum(axis=_AXES, keepdims=True)))
