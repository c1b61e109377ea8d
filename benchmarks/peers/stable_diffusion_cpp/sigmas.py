"""Euler's sigmas as diffusers' EulerDiscreteScheduler computes them, for a program that takes a list.

Supports neither Karras, exponential and beta sigmas, nor betas other than scaled linear ones: see `unsupported_reason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_TIMESTEPS = 1000  # the number of stable-diffusion.cpp
# Its own betas. It converts a sigma into a timestep with them, and runs the U-Net at that timestep.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_OTHER = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr", "trained_betas")


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Return why the program cannot follow this configuration, or None."""
    if any(config.get(key) != value for key, value in _BETAS.items()):
        return (
            "its noise schedule is that of Stable Diffusion (scaled linear, 0.00085 to 0.012); this model has another"
        )
    if config.get("num_train_timesteps", _TIMESTEPS) != _TIMESTEPS:
        return f"its networks have {_TIMESTEPS} timesteps, not {config['num_train_timesteps']}"
    unsupported = [key for key in _OTHER if config.get(key)]
    if unsupported:
        return f"this suite's sigmas for it do not support {unsupported[0]}"
    return None


def euler(config: Mapping[str, Any], steps: int) -> list[float]:
    """Return the sigma of each step, and the last one."""
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, _TIMESTEPS, dtype=np.float64) ** 2
    kept = np.cumprod(1 - betas)
    sigmas = ((1 - kept) / kept) ** 0.5
    values = np.interp(timesteps(config, steps), np.arange(_TIMESTEPS), sigmas)
    last = sigmas[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return [*map(float, values), float(last)]


def timesteps(config: Mapping[str, Any], steps: int) -> np.ndarray[Any, Any]:
    """Return the timesteps, noisiest first, as diffusers rounds table 2 of https://arxiv.org/abs/2305.08891."""
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "linspace":
        return np.linspace(0, _TIMESTEPS - 1, steps)[::-1]
    if spacing == "leading":
        return (np.arange(steps) * (_TIMESTEPS // steps))[::-1] + config.get("steps_offset", 0)
    return np.round(np.arange(_TIMESTEPS, 0, -_TIMESTEPS / steps)) - 1
