"""`Pipeline`: a loaded model, as its users see it. `generator` has the order of the work."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import BackendSelection, LoadedComponent
from .backends.components import Components
from .errors import InputError
from .errors.validation import with_known_names
from .fitting import Fitting
from .generator import ImageGenerator
from .images.arrays import Images, as_list, batch, load_image_array
from .images.png import image_from_pixels, to_uint8, to_unit_range
from .lora.lora import LoraLike
from .plan.plan import Plan
from .report.description import Described
from .report.result import Event, Result
from .request.diffusers_names import KnownAttributes
from .resources import Resources
from .stages.generation import Generation
from .stages.vae import Codec
from .system import forks
from .system.trace import traced

__all__ = ["Event", "Pipeline", "Result"]

Floats = NDArray[np.float32]


class Pipeline(Fitting, Resources, Described, KnownAttributes):
    """A loaded model, which `load` returns. Several threads may call it; `cancel` ends the running calls."""

    plan: Plan
    """The model as data: its components, sizes and schedulers, and where it came from."""

    def __init__(self, plan: Plan, components: Components | BackendSelection, *, opens: bool = True) -> None:
        self.plan = plan
        self._components = components if isinstance(components, Components) else Components(plan, components)
        self._generator = ImageGenerator(plan, self._components)
        self._guard = forks.Lock()
        self._active: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        if opens:
            self._components.open_used(plan)

    def __call__(self, prompt: Any = None, **arguments: Any) -> Result:
        """Generate images.

        Args:
            prompt: Text, or a list of texts. Only an unconditional model takes none.
            **arguments: The other arguments, which are the fields of `Request`.

        Returns:
            The images, their seeds, and the report.

        Raises:
            InputError: An argument is invalid.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
            BackendError: A backend failed, or the GPU is full (DeviceFullError).
            NotFiniteError: A network returned numbers that are not finite.
            Cancelled: `cancel` was called.
        """
        return self._generator.generate(self._start(prompt, arguments))

    def stream(self, prompt: Any = None, **arguments: Any) -> Iterator[Event]:
        """Return an event for each step of a call; the last one has the result. Closing the stream ends the work.

        Arguments and errors are those of a call. It checks the arguments before the first event.

        Returns:
            One event for each step. The last one has the result.
        """
        return self._generator.stream(self._start(prompt, arguments))

    def profile(self, path: str | Path, prompt: Any = None, **arguments: Any) -> Result:
        """Return the result of a call, and write a Chrome trace of it. Other arguments are those of a call.

        Args:
            path: The JSON file. If PyTorch runs a component, it contains its operators and GPU kernels.

        Returns:
            The result of the call.

        Raises:
            InputError: The file cannot be written.
        """
        with traced(Path(path), by_torch=self._components.run_by_torch):
            return self(prompt, **arguments)

    def cancel(self) -> None:
        """End every running call and stream at its next step, with `Cancelled`. Any thread may call it."""
        with self._guard:
            for stop in self._active:
                stop.set()

    def component(self, name: str) -> LoadedComponent:
        """Return a component with its runner. Its first use traces it if necessary, and opens it.

        Args:
            name: A name in `plan.components`, for example "unet".

        Raises:
            SourceError: It cannot be traced from the model's files.
            BackendError: No backend can open it.
        """
        return self._components(name)

    @with_known_names({})
    def set_lora(self, lora: LoraLike = None) -> None:
        """Replace the active LoRAs with these; None restores the model's own weights.

        It waits for running calls, and later calls wait for it. If it fails, it restores the LoRAs before it.

        Args:
            lora: A .safetensors file of diffusers, peft or kohya, or a folder as diffusers saves a LoRA; "FILE:0.8",
                (FILE, 0.8) or {FILE: 0.8} for a weight other than 1, from -10 to 10; or a list of these, whose deltas
                are added. A file of weight 0 is not used.

        Raises:
            SourceError: A file is missing or not a LoRA, a tensor has no place in the model, or a weight is invalid.
            BackendError: The backend cannot change these weights.
            InputError: This thread has an open stream.
        """
        self._generator.loras.set(lora)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """The active LoRAs, as (file, weight)."""
        return tuple((str(lora.path), lora.weight) for lora in self._generator.loras.loras)

    @with_known_names({})
    def encode(self, image: Images, *, tile: int | None = None, sliced: bool = False) -> Floats:
        """Encode one image, or several of one size, as latents of the U-Net.

        Args:
            image: Files, PIL images, arrays [H, W, 3] or tensors [3, H, W]; sizes are rounded down to a multiple of the
                VAE's factor (8 pixels).
            tile: The side of a tile in pixels; by default, as much at once as the free memory allows.
            sliced: Encode one image at a time.

        Returns:
            float32 [B, C, h, w].

        Raises:
            InputError: The image or the tile is invalid.
        """
        return _encoded(self._generator.codec, _pixels(image, self.plan.profile.factor), sliced, tile)

    @with_known_names({})
    def decode(
        self, latents: Floats, *, output_type: str = "pil", tile: int | None = None, sliced: bool = False
    ) -> Any:
        """Decode latents of the U-Net to images.

        Args:
            latents: float32 [B, C, h, w], an array or a tensor; of a video model [B, F, C, h, w].
            output_type: "pil" or "np".
            tile: As in `encode`.
            sliced: As in `encode`.

        Returns:
            A list of PIL images, or for "np" float32 [B, H, W, 3] in [0, 1]; of a video model a list of the frames of
            all clips, or [B, F, H, W, 3].

        Raises:
            InputError: An argument is invalid.
        """
        return _decoded(self._generator.codec, latents, output_type, sliced, tile)

    def _start(self, prompt: Any, arguments: dict[str, Any]) -> Generation:
        stop = threading.Event()
        with self._guard:
            self._active.add(stop)  # as long as the work holds it
        vars(self)["_interrupt"] = False  # which a callback may set
        call = self._generator.start(prompt, arguments, stop)
        call.pipeline = self
        return call


def _encoded(codec: Codec, pixels: Floats, sliced: bool, tile: int | None) -> Floats:
    return codec.encode(pixels, tiling=codec.tiling_from(sliced, tile))


def _decoded(codec: Codec, latents: Floats, output_type: str, sliced: bool, tile: int | None) -> Any:
    if output_type not in ("pil", "np"):
        raise InputError(f"output_type must be pil or np, got {output_type!r}.", argument="output_type")
    pixels = codec.decode(codec.check_latents(latents), codec.tiling_from(sliced, tile))
    if output_type == "np":
        return to_unit_range(pixels)
    images = to_uint8(pixels)
    return [image_from_pixels(each, {}) for each in images.reshape(-1, *images.shape[-3:])]


def _pixels(images: Images, factor: int) -> Floats:
    """Return images as one batch, with the sides of the first, rounded down.  # [B, 3, H, W] in [0, 1]"""
    arrays = [load_image_array("image", each) for each in as_list(images)]
    if not arrays:
        raise InputError("image must be an image, or a list of images that is not empty.", argument="image")
    height, width = (max(side // factor, 1) * factor for side in arrays[0].shape[:2])
    return batch(arrays, len(arrays), height, width)
