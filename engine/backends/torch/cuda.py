"""The cuda backend: the model's PyTorch modules on an NVIDIA GPU, with custom kernels and captured as CUDA graphs.

It opens the same folders as the eager backend and computes in the artifact's precision. It captures the networks that
run at every step or on full images. A text encoder runs once per prompt and is not captured.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from ...cuda.device import Gpu, run_or_device_full
from ...cuda.graphs import CudaGraphCache, CudaGraphCapturer, Function, GraphCapturer
from ...errors import BackendError, SourceError
from ...system.memory import in_words
from ..base import Array, Arrays, Backend, DeviceNetwork, Runner, Session, Tensors, missing_packages

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas

_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_CAPTURED = ("unet", "controlnet", "vae")
_WIDE = ("timestep", "time_ids", "added_time_ids")  # stay in float32: half types have too few digits for them
_BF16_CAPABILITY = (8, 0)
_GRAPHS_SHARE = 4  # the graphs of one network may take a quarter of the device's memory


class CudaRunner(Runner):
    """A module on the device. Threads may share it; one runs at a time, all on one stream."""

    backend = "cuda"

    def __init__(
        self, component: PlannedComponent, artifact: Artifact, gpu: Gpu, recorder: GraphCapturer, *, limit_bytes: int
    ) -> None:
        import torch

        from ...cuda.fused.fuse import fuse
        from ...cuda.vae_scale import scale_residuals
        from .modules import load_module
        from .video import mixes_frames
        from .weights import fused_weights, layers_of

        if artifact.precision not in _TYPES:
            message = f"cuda runs {', '.join(_TYPES)}, and the artifact is {artifact.precision}."
            raise BackendError(message, backend=self.backend, component=component.name)
        dtype: torch.dtype = getattr(torch, _TYPES[artifact.precision])
        try:
            module = load_module(component.name, artifact.path, dtype)
        except SourceError as broken:
            raise BackendError(str(broken), backend=self.backend, component=component.name) from None
        self.precision = artifact.precision
        if artifact.precision == "fp16" and component.name.startswith("vae"):
            scale_residuals(module)  # SDXL's states would overflow
        layers = layers_of(module)
        self.replaced = Counter() if mixes_frames(module) else fuse(module)  # kernels know images, not clips
        size = sum(p.numel() * dtype.itemsize for p in module.parameters())
        what = f"the weights of the {component.name} ({in_words(size)} in {artifact.precision})"
        fix = "load it in a lower precision: calotype.load(MODEL, precision='fp16'), or --precision fp16"
        module = run_or_device_full(lambda: gpu.move_module(module.to(dtype)), what, fix)
        self._weights = fused_weights(layers, module)
        self.network = Module(module, dtype, [b.name for b in component.outputs])
        self._name = component.name
        self._gpu, self._lock = gpu, threading.Lock()
        captured = component.name.startswith(_CAPTURED)
        self._run: Function = (
            CudaGraphCache(self._eager, recorder, limit_bytes=limit_bytes) if captured else self._eager
        )

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Copy the inputs to the device, run, and return all outputs by name."""
        import torch

        with self._lock, torch.inference_mode():
            return self._gpu.run_arrays(self._name, self._run, inputs)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Change these weights in place, where captured graphs read them, and restore all others."""
        with self._lock, self._gpu.side_stream():
            self._weights.update_weights(deltas)

    def _eager(self, inputs: Tensors) -> dict[str, Tensor]:
        """Run once. Inputs and outputs are float32, so that a graph captures the casts as well."""
        return {name: tensor.float() for name, tensor in self.network(inputs).items()}


class Module(DeviceNetwork):
    """A module as a function of tensors on the device."""

    channels_last = True

    def __init__(self, module: nn.Module, dtype: torch.dtype, outputs: list[str]) -> None:
        self._module, self.dtype, self._outputs = module, dtype, outputs

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Return all outputs by name."""
        cast = {n: t.to(self.dtype) if t.is_floating_point() and n not in _WIDE else t for n, t in inputs.items()}
        outputs: tuple[Tensor, ...] = self._module(**cast)
        return dict(zip(self._outputs, outputs, strict=True))

    def session(self, constants: Tensors, timesteps: Tensor) -> Session[Tensor]:
        """Return a session that computes once what depends only on the text and the timesteps."""
        from ...cuda.step_cache import StepValues

        values, plain = (
            StepValues(self._module, timesteps, constants, self.dtype),
            super().session(constants, timesteps),
        )

        def run(call: int, sample: Tensor, changing: Tensors) -> dict[str, Tensor]:
            with values.at(call):
                return plain(call, sample, changing)

        return run


def unavailable() -> str | None:
    """Return None if torch can use a GPU and all packages are installed, else what is missing."""
    if reason := missing_packages("build", "torch", "diffusers", "transformers"):
        return reason
    import torch

    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    return missing_packages("gpu", "triton")


def unsupported(precision: str) -> str | None:
    """Return why this GPU cannot compute in the precision, or None if it can."""
    import torch

    if precision == "bf16" and torch.cuda.is_available() and torch.cuda.get_device_capability() < _BF16_CAPABILITY:
        return "this GPU has no bfloat16 arithmetic (compute capability 8.0 or higher)"
    return None


def hardware() -> str:
    """Return the name of the GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def open_runner(component: PlannedComponent, artifact: Artifact) -> CudaRunner:
    """Open a component from its folder of config and safetensors. Raise `BackendError` if it cannot be opened."""
    gpu = Gpu()
    return CudaRunner(component, artifact, gpu, CudaGraphCapturer(), limit_bytes=gpu.total_bytes() // _GRAPHS_SHARE)


BACKEND = Backend(
    name="cuda",
    form="diffusers",
    precisions=tuple(_TYPES),
    computes=("fp16", "bf16", "fp32"),
    packages=("torch",),
    unavailable=unavailable,
    unsupported=unsupported,
    hardware=hardware,
    open=open_runner,
)
