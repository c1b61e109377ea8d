"""DDIM inversion: the noise along a schedule from which a network gives an image back (Song et al. 2020, 2010.02502).

Each step follows the network from a timestep to the next higher one. Knows sessions of a U-Net and a model's betas.
Does not know prompts or styles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.session import NetworkCalls
from ...errors import InputError
from ...plan.image_input import signal_of

Floats = NDArray[np.float32]
# (number of the call, latents [1, C, h, w]) -> the network's output [1, C, h, w]
Denoise = Callable[[int, Floats], NetworkCalls[Floats]]


class Signal:
    """The share of the image in the noisy latents of each timestep (alpha bar), by a scheduler's config."""

    def __init__(self, scheduler: Mapping[str, Any]) -> None:
        """Take the config of a model's scheduler. Raises `SourceError` for a schedule of betas that is not known."""
        shares = signal_of(scheduler, "scheduler/scheduler_config.json")
        if scheduler.get("rescale_betas_zero_snr"):  # (Lin et al. 2023, arXiv 2305.08891, algorithm 1)
            roots = np.sqrt(shares)
            shares = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        self._shares = shares
        self.clean = 1.0 if scheduler.get("set_alpha_to_one", True) else float(shares[0])

    def at(self, timestep: float) -> float:
        """Return the share at a timestep; between two whole ones the logarithm of the noise changes evenly."""
        low, rest = int(np.floor(timestep)), timestep % 1
        low = min(max(low, 0), len(self._shares) - 1)
        if not rest or low + 1 == len(self._shares):
            return float(self._shares[low])
        ratios = (1 - self._shares[low : low + 2]) / np.maximum(self._shares[low : low + 2], 1e-12)
        return float(1 / (1 + np.exp((1 - rest) * np.log(ratios[0]) + rest * np.log(ratios[1]))))


def inverted(
    clean: Floats, timesteps: NDArray[Any], scheduler: Mapping[str, Any], denoise: Denoise
) -> NetworkCalls[Floats]:
    """Yield the calls of the network, and return the noisy latents at each timestep.

    Args:
        clean: the latents of the image.  # [1, C, h, w]
        timesteps: rising timesteps.  # [T]
        scheduler: the config of the model's scheduler.
        denoise: calls the network at timestep number i.

    Returns:
        The latents, as the network takes them.  # [T, C, h, w]

    Raises:
        InputError: the network predicts something else than noise, velocity or the image.
    """
    kind, signal = scheduler.get("prediction_type", "epsilon"), Signal(scheduler)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"style_image needs a model that predicts noise, got {kind!r:.40}.", argument="style_image")
    latents, share, steps = clean.astype(np.float64), signal.clean, []
    for i, timestep in enumerate(timesteps):
        output = yield from denoise(i, latents.astype(np.float32))
        image, noise = _parts(kind, latents, output.astype(np.float64), share)
        share = signal.at(float(timestep))
        latents = share**0.5 * image + (1 - share) ** 0.5 * noise
        steps.append(latents.astype(np.float32))
    return np.concatenate(steps)


def _parts(kind: str, latents: Any, output: Any, share: float) -> tuple[Any, Any]:
    """Return the image and the noise that the output means for latents with this share of the image."""
    signal, noise = share**0.5, (1 - share) ** 0.5
    if kind == "epsilon":
        return (latents - noise * output) / signal, output
    if kind == "v_prediction":
        return signal * latents - noise * output, signal * output + noise * latents
    return output, (latents - signal * output) / max(noise, 1e-6)
