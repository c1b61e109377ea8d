"""`Pipeline`: a loaded model, as its users see it. `generator` has the order of the work."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import COMPILED, BackendSelection, LoadedComponent
from .backends.components import Components
from .errors import InputError
from .errors.validation import with_known_names
from .generator import ImageGenerator
from .images.arrays import Images, as_list, batch, load_image_array
from .images.png import image_from_pixels, to_uint8, to_unit_range
from .lora.lora import LoraLike
from .plan.plan import Plan, PlannedComponent
from .report.result import Event, Result
from .request.diffusers_names import KnownAttributes
from .stages.generation import Generation
from .system import forks
from .system.trace import traced

__all__ = ["Event", "Pipeline", "Result"]

Floats = NDArray[np.float32]
_TORCH_BACKENDS = ("eager", "cuda", *COMPILED)  # PyTorch's profiler sees their work


class Pipeline(KnownAttributes):
    """A loaded model. Several threads may call it; `cancel` ends the running calls."""

    plan: Plan

    def __init__(
        self, plan: Plan, choice: BackendSelection, planned: Callable[[str], PlannedComponent] | None = None
    ) -> None:
        """`planned` returns a component with its artifacts when it is opened; the default is the plan's components."""
        self.plan = plan
        self._components = Components(plan, choice, planned)
        self._generator = ImageGenerator(plan, self._components)
        self._guard = forks.Lock()
        self._active: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        for name in (*plan.tokenizers, "unet", "vae_decoder"):  # the first call that needs another component opens it
            if name in plan.components:
                self.component(name)

    def __call__(self, prompt: Any = None, **arguments: Any) -> Result:
        """Generate images. The arguments are those of `Request`; only an unconditional model takes no prompt.

        Returns:
            The images, their seeds, and the report.

        Raises:
            InputError: an argument is wrong; SamplerError: the scheduler cannot run; Cancelled: `cancel` was called.
            BackendError: a backend failed.
        """
        return self._generator.generate(self._start(prompt, arguments))

    def stream(self, prompt: Any = None, **arguments: Any) -> Iterator[Event]:
        """Generate images step by step: yield one `Event` a step. Closing the stream between two steps ends the work.

        The call itself checks the arguments, before the first event. Arguments and errors are those of a call.
        """
        return self._generator.stream(self._start(prompt, arguments))

    def profile(self, path: str | Path, prompt: Any = None, **arguments: Any) -> Result:
        """Generate images as a call does, and write a Chrome trace (JSON) of the work to `path`.

        If PyTorch runs a component, the trace contains its operators and GPU kernels. Raises what a call raises, and
        `InputError` if the file cannot be written.
        """
        by_torch = any(each.runner.backend in _TORCH_BACKENDS for each in self._components.opened)
        with traced(Path(path), by_torch=by_torch):
            return self(prompt, **arguments)

    def cancel(self) -> None:
        """End every running call and stream at its next step, with `Cancelled`. Any thread may call it."""
        with self._guard:
            for stop in self._active:
                stop.set()

    def component(self, name: str) -> LoadedComponent:
        """Return the component with its runner. Its first use traces it if necessary, and opens it.

        Raises:
            SourceError: it cannot be traced from the model's files; BackendError: no backend opens it.
        """
        return self._components(name)

    @with_known_names({})
    def set_lora(self, lora: LoraLike = None) -> None:
        """Replace the active LoRAs with these; None restores the model's own weights.

        Does what `load_lora_weights`, `set_adapters` and `unload_lora_weights` do in diffusers, without a new build or
        export. It waits for running calls (`cancel` ends them), and later calls wait for it. If it fails, it restores
        the LoRAs before it; if that fails too, calls raise until `set_lora` succeeds.

        Args:
            lora: a .safetensors file of diffusers, peft or kohya, or a folder as diffusers saves a LoRA; "FILE:0.8",
                (FILE, 0.8) or {FILE: 0.8} for a weight other than 1, from -10 to 10; or a list of these, whose deltas
                are added. A file of weight 0 is not used.

        Raises:
            SourceError: a file is missing, is not a LoRA, or has a tensor (the error names it) that the model lacks.
            BackendError: the backend cannot change these weights.
            InputError: this thread has an open stream.
        """
        self._generator.loras.set(lora)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """The active LoRAs, as (file, weight)."""
        return tuple((str(lora.path), lora.weight) for lora in self._generator.loras.loras)

    @with_known_names({})
    def encode(self, image: Images, *, tile: int | None = None, sliced: bool = False) -> Floats:
        """Encode one image, or several of one size, as latents of the U-Net.  # -> float32 [B, C, h, w]

        Args:
            image: the values of `Request.image`; sizes are rounded down to a multiple of the VAE's factor (8 pixels).
            tile: side of a tile in pixels; by default, as much at once as fits into the free memory.
            sliced: encode one image at a time.

        Raises:
            InputError: the image or the tile is invalid.
        """
        images = [load_image_array("image", each) for each in as_list(image)]
        if not images:
            raise InputError("image must be an image, or a list of images that is not empty.")
        factor, codec = self.plan.profile.factor, self._generator.codec
        height, width = (max(side // factor, 1) * factor for side in images[0].shape[:2])
        pixels = batch(images, len(images), height, width)
        return codec.encode(pixels, tiling=codec.tiling_from(sliced, tile))

    @with_known_names({})
    def decode(
        self, latents: Floats, *, output_type: str = "pil", tile: int | None = None, sliced: bool = False
    ) -> Any:
        """Decode latents [B, C, h, w] of the U-Net to PIL images, or for "np" to float32 [B, H, W, 3] in [0, 1].

        `tile` and `sliced` are as in `encode`. Raises `InputError`.
        """
        codec = self._generator.codec
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be pil or np, got {output_type!r}.")
        pixels = codec.decode(codec.check_latents(latents), codec.tiling_from(sliced, tile))
        return to_unit_range(pixels) if output_type == "np" else [image_from_pixels(p, {}) for p in to_uint8(pixels)]

    def _start(self, prompt: Any, arguments: dict[str, Any]) -> Generation:
        forks.check()
        stop = threading.Event()
        with self._guard:
            self._active.add(stop)  # as long as the work holds it
        return self._generator.start(prompt, arguments, stop)
