"""The autoencoder as a codec: pixels to latents of the U-Net, and back.

Knows the plan's scaling of latents, which component does what, and how much memory it takes: what does not fit at once
goes picture by picture, and then tile by tile. Knows nothing of steps or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.tiling import tiled
from ..plan.plan import Plan
from ..sampling.matrix import Draw
from ..system.memory import available_bytes, in_words, peak_bytes

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]  # takes its inputs by name, gives its outputs by name

TILES = (1024, 512, 256)  # pixels, tried in this order where the whole does not fit
_LEAST_TILE = 64


@dataclass(frozen=True, kw_only=True)
class VaeTiling:
    """In what portions a batch goes through the autoencoder.

    Attributes:
        sliced: picture by picture.
        tile: in tiles of so many pixels a side; None is the whole picture. Tiles go picture by picture too.
        note: why, for the report; empty where it was asked for, or all goes at once.
    """

    sliced: bool = False
    tile: int | None = None
    note: str = ""


class Codec:
    """A plan's autoencoder. Threads may share it."""

    def __init__(
        self, plan: Plan, network: Callable[[str], Network], device_bytes: Callable[[], int | None] = lambda: None
    ) -> None:
        """`network` gives a component by its name; the encoder is opened at its first use. `device_bytes` tells what is
        free on the device where the networks run; None is the host.
        """
        self._network, self._device_bytes = network, device_bytes
        self._factor = plan.profile.factor
        self.channels = int(plan.latents.dims[1])
        self._coded = "vae_decoder" in plan.components  # pixels themselves are denoised where there is no autoencoder
        self._loads = [load for load in plan.loads if not load.guided]  # the autoencoder's own
        self._posterior = self._coded and plan.components["vae_encoder"].outputs[0].dims[1] != self.channels
        self._scale = np.float32(plan.scaling_factor)
        mean_and_std = [plan.latents_mean or (0,), plan.latents_std or (1,)]
        self._mean, self._std = (np.array(each, dtype=np.float32)[:, None, None] for each in mean_and_std)

    @property
    def draws(self) -> bool:
        """Does the encoder give a distribution, of which one is drawn?"""
        return self._posterior

    def tiling(self, count: int, height: int, width: int) -> VaeTiling:
        """What fits into the memory that is free, for so many pictures of this size in pixels."""
        on_device = self._device_bytes()
        have = available_bytes() if on_device is None else on_device

        def fits(batch: int, tall: int, wide: int) -> bool:
            need = peak_bytes(self._loads, batch=batch, height=tall, width=wide, guided=False)
            return have is None or need <= have

        if not self._loads or fits(count, height, width):
            return VaeTiling()
        if fits(1, height, width):
            return VaeTiling(sliced=True)
        tile = next((t for t in TILES if fits(1, min(t, height), min(t, width))), TILES[-1])
        need = peak_bytes(self._loads, batch=1, height=height, width=width, guided=False)
        why = f"the whole needs about {in_words(need)} of memory, and {in_words(have or 0)} are free"
        return VaeTiling(tile=tile, note=f"the autoencoder worked in tiles of {tile} pixels: {why}")

    def encode(self, pixels: Floats, draw: Draw | None = None, tiling: VaeTiling | None = None) -> Floats:
        """Pixels to latents: the mean of their posterior, or one drawn of it with the noise that `draw` hands out.

        # float32 [B, 3, H, W] in [0, 1] -> [B, C, h, w]
        """
        count, _, height, width = pixels.shape
        tiling = tiling or self.tiling(count, height, width)
        found = self._run("vae_encoder", "sample", pixels * np.float32(2) - np.float32(1), tiling, 1 / self._factor)
        latents: NDArray[Any] = found[:, : self.channels]
        if draw is not None and self.draws:  # the second half is the posterior's log-variance
            latents = latents + np.exp(np.float32(0.5) * found[:, self.channels :].clip(-30, 20)) * draw()
        return np.asarray((latents - self._mean) / self._std * self._scale, dtype=np.float32)

    def decode(self, latents: Floats, tiling: VaeTiling | None = None) -> Floats:
        """Latents to pixels.  # [B, C, h, w] -> [B, 3, H, W] in about [-1, 1]"""
        count, _, height, width = latents.shape
        tiling = tiling or self.tiling(count, height * self._factor, width * self._factor)
        scaled = np.asarray(latents / self._scale * self._std + self._mean, dtype=np.float32)
        return self._run("vae_decoder", "latent_sample", scaled, tiling, self._factor)

    def _run(self, name: str, takes: str, given: Floats, tiling: VaeTiling, ratio: float) -> Floats:
        if not self._coded:
            return given
        network = self._network(name)

        def run(part: Floats) -> Floats:
            (found,) = network(**{takes: part}).values()
            return found

        if tiling.tile is not None:
            side = tiling.tile if ratio < 1 else tiling.tile // self._factor
            return tiled(run, given, side, ratio)
        if tiling.sliced:
            return np.concatenate([run(given[i : i + 1]) for i in range(len(given))])
        return run(given)

    def tiling_from(self, sliced: bool, tile: int | None) -> VaeTiling | None:
        """What a user said; None where nothing was said. Raises `InputError`."""
        if tile is None:
            return VaeTiling(sliced=True) if sliced else None
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < _LEAST_TILE or tile % self._factor:
            wanted = f"a multiple of {self._factor} pixels, {_LEAST_TILE} or more"
            raise InputError(f"tile must be {wanted}; got {tile!r:.80}.")
        return VaeTiling(sliced=sliced, tile=tile)
