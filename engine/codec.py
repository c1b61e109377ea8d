"""The autoencoder as a codec: pixels to latents of the U-Net, and back.

Knows the plan's scaling of latents and which component does what; knows nothing of steps or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.plan import Plan
from calotype.sampler import Draw

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]  # takes its inputs by name, gives its outputs by name


class Codec:
    """A plan's autoencoder. Threads may share it."""

    def __init__(self, plan: Plan, network: Callable[[str], Network]) -> None:
        """`network` gives a component by its name; the encoder is opened at its first use."""
        self._network = network
        self._channels = plan.components["vae_decoder"].inputs[0].dims[1]
        self._scale = np.float32(plan.scaling_factor)
        mean_and_std = [plan.latents_mean or (0,), plan.latents_std or (1,)]
        self._mean, self._std = (np.array(each, dtype=np.float32)[:, None, None] for each in mean_and_std)

    def encode(self, pixels: Floats, draw: Draw | None = None) -> Floats:
        """Pixels to latents: the mean of their posterior, or one drawn of it with the noise that `draw` hands out.

        # float32 [B, 3, H, W] in [0, 1] -> [B, C, h, w]
        """
        (found,) = self._network("vae_encoder")(sample=pixels * np.float32(2) - np.float32(1)).values()
        latents: NDArray[Any] = found[:, : self._channels]
        if draw is not None and found.shape[1] > latents.shape[1]:  # the second half is the posterior's log-variance
            latents = latents + np.exp(np.float32(0.5) * found[:, self._channels :].clip(-30, 20)) * draw()
        return np.asarray((latents - self._mean) / self._std * self._scale, dtype=np.float32)

    def decode(self, latents: Floats) -> Floats:
        """Latents to pixels.  # [B, C, h, w] -> [B, 3, H, W] in about [-1, 1]"""
        scaled = np.asarray(latents / self._scale * self._std + self._mean, dtype=np.float32)
        return self._network("vae_decoder")(latent_sample=scaled)["sample"]
