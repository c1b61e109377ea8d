"""Guidance methods besides the classifier-free one: adaptive projected guidance (APG) and CFG-Zero*.

APG works on the clean latents that the outputs stand for, as in the paper. Does not know schedulers or networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
_AXES = (1, 2, 3)  # of one image


@dataclass(kw_only=True)
class ProjectedGuidance:
    """APG (Sadat et al. 2024, arXiv 2410.02416): limits the guidance and its part along the conditional prediction.

    Attributes:
        eta: the share of that part that stays; 0 removes what saturates colors.
        momentum: the share of the earlier guidance that is added; below 0 it is subtracted.
        rescale: the largest L2 norm of an image's guidance; 0 is no limit.
    """

    eta: float
    momentum: float
    rescale: float
    _average: Doubles | float = field(default=0.0, init=False)

    def __call__(self, uncond: Doubles, cond: Doubles, scale: float) -> Doubles:
        """Return the guided clean latents of the next step, from both predictions of them.  # [B, C, H, W] each"""
        self._average = cond - uncond + self.momentum * self._average
        guidance = np.asarray(self._average)
        if self.rescale > 0:
            guidance = guidance * np.minimum(1, self.rescale / np.maximum(_norm(guidance), 1e-12))
        direction = cond / np.maximum(_norm(cond), 1e-12)
        parallel = (guidance * direction).sum(axis=_AXES, keepdims=True) * direction
        return np.asarray(cond + (scale - 1) * (guidance + (self.eta - 1) * parallel))


def zero_star(uncond: Floats, cond: Floats, scale: float) -> Floats:
    """Scale the unconditional output to fit the conditional one (CFG-Zero*: Fan et al. 2025, arXiv 2503.18886).

    # [B, C, H, W] each -> [B, C, H, W]
    """
    wide = uncond.astype(np.float64)
    factor = (cond * wide).sum(axis=_AXES, keepdims=True) / ((wide**2).sum(axis=_AXES, keepdims=True) + 1e-8)
    scaled = wide * factor
    return np.asarray(scaled + scale * (cond - scaled), dtype=np.float32)


def guide_projected(
    projected: ProjectedGuidance, sample: Floats, output: Floats, scale: float, weights: tuple[float, float]
) -> Floats:
    """Combine the halves of an output by APG. `weights` of sample and output give the clean latents.

    # [B, C, H, W], [2B, C, H, W] with the unconditional half first -> [B, C, H, W]
    """
    of_sample, of_output = weights
    uncond, cond = (of_sample * sample + of_output * half.astype(np.float64) for half in np.split(output, 2))
    guided = projected(uncond, cond, scale)
    return np.asarray((guided - of_sample * sample) / of_output, dtype=np.float32)


def _norm(arrays: Doubles) -> Doubles:
    return np.asarray(np.sqrt((arrays**2).sum(axis=_AXES, keepdims=True)))
