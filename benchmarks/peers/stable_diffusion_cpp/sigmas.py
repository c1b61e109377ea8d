"""Euler's sigmas as diffusers' EulerDiscreteScheduler has them, by its own formulas, for a program that takes a list.

Not known here: Karras, exponential and beta sigmas, and betas other than linear and scaled linear; `cannot` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_TIMESTEPS = 1000  # as many as stable-diffusion.cpp has
# Its own betas; a sigma is turned into a timestep by them, and the U-Net is asked at that timestep.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_OTHER = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr", "trained_betas")


def cannot(config: Mapping[str, Any]) -> str | None:
    """Why the configuration is not one that the program can follow; None where it is."""
    if any(config.get(key) != value for key, value in _BETAS.items()):
        return "its noise schedule is that of Stable Diffusion (scaled linear, 0.00085 to 0.012), and this one is not"
    if config.get("num_train_timesteps", _TIMESTEPS) != _TIMESTEPS:
        return f"its networks are trained for {_TIMESTEPS} timesteps, not {config['num_train_timesteps']}"
    asked = [key for key in _OTHER if config.get(key)]
    if asked:
        return f"the sigmas that it is given here do not know {asked[0]}"
    return None


def euler(config: Mapping[str, Any], steps: int) -> list[float]:
    """The sigma of each step, and the last one."""
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, _TIMESTEPS, dtype=np.float64) ** 2
    kept = np.cumprod(1 - betas)
    sigmas = ((1 - kept) / kept) ** 0.5
    found = np.interp(timesteps(config, steps), np.arange(_TIMESTEPS), sigmas)
    last = sigmas[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return [*map(float, found), float(last)]


def timesteps(config: Mapping[str, Any], steps: int) -> np.ndarray[Any, Any]:
    """Noisiest first; after table 2 of https://arxiv.org/abs/2305.08891, as diffusers rounds it."""
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "linspace":
        return np.linspace(0, _TIMESTEPS - 1, steps)[::-1]
    if spacing == "leading":
        return (np.arange(steps) * (_TIMESTEPS // steps))[::-1] + config.get("steps_offset", 0)
    return np.round(np.arange(_TIMESTEPS, 0, -_TIMESTEPS / steps)) - 1
