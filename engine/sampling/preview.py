"""What the network's output at a call says about the clean latents: the coefficients of a preview."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SamplerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_ALPHA = 2.0**-24  # diffusers' own replacement for zero, at a zero terminal signal-to-noise ratio


def preview_coefficients(scheduler: Any, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pairs (a, b) such that `a * input + b * output` estimates the clean latents. float64 [calls, 2].

    They depend only on the network's prediction type and on the noise level, so they hold for every scheduler. An input
    is `sqrt(A) * clean + sqrt(1 - A) * noise`, where A is alpha-bar (Ho et al., "Denoising Diffusion Probabilistic
    Models", eq. 4; v: Salimans & Ho, "Progressive Distillation", appendix D). Sigma schedulers scale their inputs to
    that form, with A = 1 / (1 + sigma^2). As in those, log sigma is interpolated between timesteps.

    Args:
        scheduler: A diffusers scheduler.
        timesteps: The network's timestep at each call. [calls].

    Raises:
        SamplerError: The scheduler is not for the networks of SD 1, SD 2 or SDXL.
    """
    kind = scheduler.config.get("prediction_type", "epsilon")
    if hasattr(scheduler, "precondition_outputs"):
        return _edm(scheduler, timesteps)
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction", "sample", "original_sample"):
        name = type(scheduler).__name__
        raise SamplerError(f"{name} ({kind}) is not for the networks of SD 1, SD 2 or SDXL.", scheduler=name)
    if scheduler.config.get("timestep_type") == "continuous" and kind == "v_prediction":
        alpha = 1 / (1 + np.exp(8 * timesteps))  # the timestep is log(sigma) / 4
    else:
        alpha = _alpha_bar(scheduler.alphas_cumprod.numpy().astype(np.float64), timesteps)
    signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
    if kind == "epsilon":
        return np.stack([1 / signal, -noise / signal], axis=1)
    if kind == "v_prediction":
        return np.stack([signal, -noise], axis=1)
    return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], axis=1)


def _alpha_bar(trained: NDArray[np.float64], timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    trained = np.clip(trained, _MIN_ALPHA, 1 - _MIN_ALPHA)
    log_sigmas = np.log((1 - trained) / trained) / 2
    log_sigma = np.interp(timesteps, np.arange(trained.size), log_sigmas)
    return np.asarray(1 / (1 + np.exp(2 * log_sigma)), dtype=np.float64)


def _edm(scheduler: Any, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", table 1."""
    pairs = []
    for timestep in timesteps:
        sigma = float(np.exp(4 * timestep))  # the timestep is log(sigma) / 4
        unscaled = float(np.hypot(sigma, scheduler.config["sigma_data"]))
        clean = scheduler.precondition_outputs
        pairs.append((float(clean(unscaled, 0.0, sigma)), float(clean(0.0, 1.0, sigma))))
    return np.array(pairs, dtype=np.float64)
