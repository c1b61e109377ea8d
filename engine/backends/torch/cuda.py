"""The cuda backend: the model's own PyTorch modules on an NVIDIA GPU, with our kernels in them and captured as graphs.

Opens the same folders as the eager backend, and computes in the precision of the artifact. Networks that are called at
every step, or on whole pictures, are captured; a text encoder runs once a prompt, and is not.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...cuda.device import Gpu, run_or_device_full
from ...cuda.graphs import CudaGraphCache, CudaGraphCapturer, Function, GraphCapturer
from ...errors import BackendError, SourceError
from ...system.memory import in_words

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas
    from ..base import Arrays

    Exactness = Callable[[], AbstractContextManager[None]]

FORM = "diffusers"
PRECISIONS = ("fp32", "fp16", "bf16")

_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_CAPTURED = ("unet", "controlnet", "vae")
_WIDE = ("timestep", "time_ids")  # half types have too few digits for them, and the networks take them in float32
_GRAPHS_SHARE = 4  # a quarter of the device's memory may be one network's graphs


def unavailable() -> str | None:
    """None where there is a GPU that torch can use, and all that the networks and kernels are made of."""
    lacking = [n for n in ("torch", "diffusers", "transformers") if importlib.util.find_spec(n) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (pip install 'calotype[build]')"
    import torch

    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'calotype[gpu]')"
    return None


def open_runner(component: PlannedComponent, artifact: Artifact) -> CudaRunner:
    """Open a component from its folder of config and safetensors. Raises `BackendError` where it cannot run here."""
    reason = unavailable()
    if reason is not None:
        raise BackendError(f"{reason}.")
    gpu = Gpu()
    return CudaRunner(component, artifact, gpu, CudaGraphCapturer(), limit_bytes=gpu.total_bytes() // _GRAPHS_SHARE)


class CudaRunner:
    """A module on the device. Threads may share it: graphs let one in at a time, and all work on one stream."""

    backend = "cuda"

    def __init__(
        self, component: PlannedComponent, artifact: Artifact, gpu: Gpu, recorder: GraphCapturer, *, limit_bytes: int
    ) -> None:
        import torch

        from ...cuda.fused_modules import fuse
        from .fused_weights import fused_weights
        from .modules import load_module
        from .weights import layers_of

        if artifact.precision not in PRECISIONS:
            raise BackendError(f"cuda runs {', '.join(PRECISIONS)}, and the artifact is {artifact.precision}.")
        try:
            module = load_module(component.name, artifact.path)
        except SourceError as broken:
            raise BackendError(str(broken)) from None
        self.precision = artifact.precision
        self._dtype: torch.dtype = getattr(torch, _TYPES[artifact.precision])
        layers = layers_of(module)
        self.replaced = fuse(module)
        size = sum(p.numel() * self._dtype.itemsize for p in module.parameters())
        what = f"the weights of the {component.name} ({in_words(size)} in {artifact.precision})"
        mend = "load a plan in a lower precision: calotype build MODEL --backend cuda --precision fp16"
        self._module = run_or_device_full(lambda: gpu.hold(module.to(self._dtype)), what, mend)
        self._weights = fused_weights(layers, self._module)
        self.network = Module(self._module, self._dtype)  # as a whole picture calls it
        self._name, self._outputs = component.name, [b.name for b in component.outputs]
        self._gpu, self._lock = gpu, threading.Lock()
        captured = component.name.startswith(_CAPTURED)
        self._run: Function = (
            CudaGraphCache(self._eager, recorder, limit_bytes=limit_bytes) if captured else self._eager
        )

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs by name, through the device and back."""
        import torch

        mend = "ask for smaller pictures, or fewer at once"
        with self._lock, self._gpu.side_stream(), torch.inference_mode(), self._gpu.named(self._name):
            return run_or_device_full(lambda: self._carried(inputs), "a run of this size", mend)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer -> its weight's shape."""
        return self._weights.shapes()

    def update_weights(self, patches: WeightDeltas) -> None:
        """Change these weights where they lie, which captured graphs read; every other is the model's own again."""
        with self._lock, self._gpu.side_stream():
            self._weights.update_weights(patches)

    def _carried(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        outputs = self._run({name: self._gpu.put(array) for name, array in inputs.items()})
        return {name: self._gpu.fetch(tensor) for name, tensor in outputs.items()}

    def _eager(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One run; float32 at both ends, casts included, so that a graph holds them as well."""
        return {n: t.float() for n, t in zip(self._outputs, self.network(**inputs), strict=True)}


class Module:
    """A module as a function of tensors on the device: a whole picture is made of these."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs in their order."""
        import torch

        cast = {n: t.to(self.dtype) if t.is_floating_point() and n not in _WIDE else t for n, t in inputs.items()}
        with _without_tf32() if self.dtype == torch.float32 else nullcontext():
            made: tuple[Tensor, ...] = self.module(**cast)
        return made


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Inside, float32 is meant: cuDNN rounds the inputs of its convolutions to ten bits unless it is told."""
    import torch

    convolutions: Any = torch.backends.cudnn
    before = convolutions.allow_tf32
    convolutions.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32 = before
