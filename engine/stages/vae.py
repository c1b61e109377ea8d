"""The VAE as a codec: pixels to latents of the U-Net, and back.

Knows the plan's scaling of latents, the components, and their memory: a batch that does not fit at once is sliced into
single images, and then into tiles. Does not know steps or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.arrays import to_array
from ..images.tiling import tiled
from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..request.video.memory import largest_chunk
from ..sampling.matrix import Draw
from ..system.memory import available_bytes, in_words, peak_bytes

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]  # takes its inputs by name, returns its outputs by name

TILES = (1024, 512, 256)  # sides in pixels, tried in this order if the full image does not fit
_MIN_TILE = 64


@dataclass(frozen=True, kw_only=True)
class VaeTiling:
    """Slicing and tiling of a batch in the VAE.

    Attributes:
        sliced: run one image at a time.
        tile: side of a tile in pixels; None is the full image. Tiles also run one image at a time.
        frames: frames of a clip that the decoder takes at once; None is all of them.
        note: the reason, for the report; empty if it was requested, or if the batch runs at once.
    """

    sliced: bool = False
    tile: int | None = None
    note: str = ""
    frames: int | None = None


UNTILED = VaeTiling()


def latent_scaling(plan: Plan) -> tuple[Floats, Floats]:
    """Return (scale, shift): latents of the autoencoder = latents of the U-Net * scale + shift.  # [C or 1, 1, 1]"""
    std, mean = (
        np.array(x, dtype=np.float32)[:, None, None] for x in (plan.latents_std or [1], plan.latents_mean or [0])
    )
    return std / np.float32(plan.scaling_factor), mean


class Codec:
    """A plan's VAE. Threads may share it."""

    def __init__(
        self, plan: Plan, network: Callable[[str], Network], device_bytes: Callable[[], int | None] = lambda: None
    ) -> None:
        """`network` returns a component by its name; the encoder is opened at its first use.

        `device_bytes` returns the free memory of the networks' device; None is the host.
        """
        self._network, self._device_bytes = network, device_bytes
        self.factor = plan.profile.factor
        self.channels = plan.latent_channels
        self._of_clips, self._animates = plan.makes_clips, plan.animates
        self._has_vae = "vae_decoder" in plan.components  # a model without a VAE denoises pixels
        self._loads = [load for load in plan.loads if not load.guided]  # those of the VAE
        # Whether the encoder returns a distribution, from which latents are drawn.
        self.draws = self._has_vae and plan.components["vae_encoder"].outputs[0].dims[1] != self.channels
        self._scale, self._shift = latent_scaling(plan)

    def tiling(self, count: int, height: int, width: int) -> VaeTiling:
        """Choose the tiling that fits into the free memory, for `count` images of this size in pixels."""
        on_device = self._device_bytes()
        free = available_bytes() if on_device is None else on_device

        def has_room(batch: int, tall: int, wide: int) -> bool:
            need = peak_bytes(self._loads, batch=batch, height=tall, width=wide, guided=False)
            return free is None or need <= free

        if not self._loads or has_room(count, height, width):
            return UNTILED
        if has_room(1, height, width):
            return VaeTiling(sliced=True)
        tile = next((t for t in TILES if has_room(1, min(t, height), min(t, width))), TILES[-1])
        need = peak_bytes(self._loads, batch=1, height=height, width=width, guided=False)
        reason = f"the full image needs about {in_words(need)} of memory, and {in_words(free or 0)} are free"
        return VaeTiling(tile=tile, note=f"the VAE worked in tiles of {tile} pixels: {reason}")

    def tiling_for(self, request: ResolvedRequest) -> VaeTiling:
        """Choose the tiling for a request: for a clip the chunks of its frames, and tiles if no frame fits."""
        height, width, clip = request.height, request.width, request.clip
        if clip is None:
            return self.tiling(len(request.seeds), height, width)
        on_device, asks_for = self._device_bytes(), min(clip.decode_chunk_size or clip.frames, clip.frames)
        free = available_bytes() if on_device is None else on_device
        room_for = asks_for if free is None else largest_chunk(self._loads, asks_for, height, width, free)
        if room_for == asks_for:
            return VaeTiling(frames=asks_for)
        frames = -(-clip.frames // -(-clip.frames // max(room_for, 1)))  # no short chunk at the end
        one = self.tiling(1, height, width) if room_for == 0 else UNTILED
        need = peak_bytes(self._loads, batch=clip.frames, height=height, width=width, guided=False)
        reason = f"all {clip.frames} need about {in_words(need)} of memory, and {in_words(free or 0)} are free"
        note = f"the VAE decoded in chunks of {frames} frames: {reason}"
        return replace(one, frames=frames, note="; ".join(filter(None, [note, one.note])))

    def encode(self, pixels: Floats, draw: Draw | None = None, tiling: VaeTiling | None = None) -> Floats:
        """Encode pixels as latents: the mean of the posterior, or with `draw`, a sample that uses its noise.

        # float32 [B, 3, H, W] in [0, 1] -> [B, C, h, w]; the noise of a multiple of B images gives as many latents
        """
        count, _, height, width = pixels.shape
        tiling = tiling or self.tiling(count, height, width)
        moments = self._run("vae_encoder", "sample", pixels * np.float32(2) - np.float32(1), tiling, 1 / self.factor)
        latents: NDArray[Any] = moments[:, : self.channels]
        if draw is not None and self.draws:  # the second half is the posterior's log-variance
            noise, deviation = draw(), np.exp(np.float32(0.5) * moments[:, self.channels :].clip(-30, 20))
            times = len(noise) // len(moments)
            latents = latents.repeat(times, axis=0) + deviation.repeat(times, axis=0) * noise
        return np.asarray((latents - self._shift) / self._scale, dtype=np.float32)

    def unscaled(self, latents: Floats) -> Floats:
        """Return latents of the U-Net as the autoencoder has them.  # [B, C, h, w] -> [B, C, h, w]"""
        return np.asarray(latents * self._scale + self._shift, dtype=np.float32)

    def decode(self, latents: Floats, tiling: VaeTiling | None = None) -> Floats:
        """Decode latents to pixels.

        # [B, C, h, w] -> [B, 3, H, W] in about [-1, 1]; of clips [B, F, C, h, w], or with motion modules
        # [B, C, F, h, w], -> [B, F, 3, H, W]
        """
        if self._of_clips:
            latents = latents.swapaxes(1, 2) if self._animates else latents
            return self._decode_clips(self.unscaled(latents), tiling or UNTILED)
        count, _, height, width = latents.shape
        tiling = tiling or self.tiling(count, height * self.factor, width * self.factor)
        return self._run("vae_decoder", "latent_sample", self.unscaled(latents), tiling, self.factor)

    def _decode_clips(self, latents: Floats, tiling: VaeTiling) -> Floats:
        """Decode each clip in chunks of its frames.  # [B, F, C, h, w] -> [B, F, 3, H, W]"""
        network = self._network("vae_decoder")

        def run(chunk: Floats) -> Floats:
            (output,) = network(latent_sample=np.ascontiguousarray(chunk if self._animates else chunk[None])).values()
            pixels: Floats = output if self._animates else output[0]
            return pixels

        def decoded(chunk: Floats) -> Floats:
            side = None if tiling.tile is None else tiling.tile // self.factor
            return run(chunk) if side is None else tiled(run, chunk, side, self.factor, together=True)

        size = latents.shape[1] if tiling.frames is None else tiling.frames
        starts = range(0, latents.shape[1], size)
        return np.stack([np.concatenate([decoded(clip[i : i + size]) for i in starts]) for clip in latents])

    def _run(self, name: str, input_name: str, array: Floats, tiling: VaeTiling, ratio: float) -> Floats:
        if not self._has_vae:
            return array
        network = self._network(name)

        def run(part: Floats) -> Floats:
            (output,) = network(**{input_name: part}).values()
            return output

        if tiling.tile is not None:
            side = tiling.tile if ratio < 1 else tiling.tile // self.factor
            return tiled(run, array, side, ratio)
        if tiling.sliced:
            return np.concatenate([run(array[i : i + 1]) for i in range(len(array))])
        return run(array)

    def check_latents(self, latents: Any) -> Floats:
        """Return latents from a caller. Raises `InputError` unless they are [B, C, h, w] of numbers, or those of clips
        as `decode` takes them."""
        latents = to_array(latents)
        is_array, dims = isinstance(latents, np.ndarray), [str(self.channels)]
        dims = dims if not self._of_clips else [*dims, "F"] if self._animates else ["F", *dims]
        is_batch = is_array and latents.ndim == 3 + len(dims) and 0 not in latents.shape
        is_batch = is_batch and latents.shape[1 + dims.index(str(self.channels))] == self.channels
        if not is_batch or latents.dtype.kind not in "biuf":
            got = f"{latents.dtype} {list(latents.shape)}" if is_array else type(latents).__name__
            raise InputError(
                f"latents must be an array [B, {', '.join(dims)}, h, w] of numbers, got {got}.", argument="latents"
            )
        return np.asarray(latents)

    def tiling_from(self, sliced: bool, tile: int | None) -> VaeTiling | None:
        """Return the requested tiling, or None if there is no request. Raises `InputError`."""
        if tile is None:
            return VaeTiling(sliced=True) if sliced else None
        if isinstance(tile, bool) or not isinstance(tile, int) or tile < _MIN_TILE or tile % self.factor:
            raise InputError(
                f"tile must be a multiple of {self.factor} pixels, {_MIN_TILE} or more; got {tile!r:.80}.",
                argument="tile",
                got=tile,
            )
        return VaeTiling(sliced=sliced, tile=tile)
