"""The onnxruntime-cuda backend: runs ONNX artifacts with ONNX Runtime's CUDA provider, on fixed device buffers.

Each set of shapes has buffers at fixed addresses, which ONNX Runtime's own CUDA graph needs: a run of known shapes is
one launch. A CUDA graph requires every node on the GPU. If the provider leaves some to the CPU, the session opens
without a graph, and `notes` say so. This module does not need torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cuda.device import TOO_LARGE, free_bytes, is_full
from ...errors import BackendError, DeviceFullError, first_line
from ...system.lru_cache import LruCache
from ..base import Array, Arrays, Backend, missing_packages
from .runner import OrtRunner, import_onnxruntime

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas

_MAX_SHAPES = 8  # sets of shapes with cached buffers and graphs; the least recently used one is dropped
_GRAPHS = {"enable_cuda_graph": "1"}


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider of ONNX Runtime: its name, its options, and the device of the buffers."""

    name: str
    device: str
    options: Mapping[str, str] = field(default_factory=dict)
    graphs: bool = False


# TF32 is off, so that float32 graphs compute in full float32.
CUDA = Provider(name="CUDAExecutionProvider", device="cuda", options={"use_tf32": "0"}, graphs=True)


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """The buffers of one set of shapes. `graph` is ONNX Runtime's number of the captured graph."""

    inputs: Mapping[str, Any]
    binding: Any
    graph: int


class OnnxRuntimeCudaRunner(OrtRunner):
    """A session with its buffers. Threads may share it; one runs at a time."""

    backend = "onnxruntime-cuda"

    def __init__(self, component: PlannedComponent, artifact: Artifact, ort: Any, provider: Provider) -> None:
        self._lock = threading.Lock()
        self._buffers: LruCache[_Buffers] = LruCache(_MAX_SHAPES)
        self._last_graph = 0
        self._device, self._graphs = provider.device, provider.graphs
        settings = {**provider.options, **(_GRAPHS if self._graphs else {})}
        try:
            super().__init__(component, artifact, ort, provider.name, settings)
        except BackendError as failed:
            if not self._graphs:
                raise
            self._graphs = False
            super().__init__(component, artifact, ort, provider.name, provider.options)
            self.notes = (f"the {component.name} runs without a CUDA graph on ONNX Runtime: {failed}",)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Run through the device buffers and return all outputs by name."""
        with self._lock:
            try:
                key = tuple((n, tuple(a.shape)) for n, a in sorted(inputs.items()))
                buffers = self._buffers(key, lambda: self._allocate(inputs))
                for name, array in inputs.items():
                    buffers.inputs[name].update_inplace(np.ascontiguousarray(array))
                self._session.run_with_iobinding(buffers.binding, self._run_options(buffers.graph))
                return dict(zip(self._outputs, buffers.binding.copy_outputs_to_cpu(), strict=True))
            except Exception as failed:  # onnxruntime's errors have no common base class below Exception
                message = first_line(failed)
                if not is_full(message):
                    raise
            self._buffers.clear()
        what, fix = TOO_LARGE
        message = f"the GPU has no room for {what} ({message}); {fix}."
        raise DeviceFullError(message, backend=self.backend, component=self._name, hint=fix, free_bytes=free_bytes())

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Open a new session with these weights changed. Drop the old one and its graphs first."""
        with self._lock:
            self._buffers.clear()
            super().update_weights(deltas)

    def _allocate(self, inputs: Arrays) -> _Buffers:
        # Copy: on a CPU, as in tests, a value shares the array's memory, and every call writes into it.
        device, to_device = self._device, self._ort.OrtValue.ortvalue_from_numpy
        values = {name: to_device(np.array(array, order="C"), device, 0) for name, array in inputs.items()}
        loose = self._session.io_binding()
        for name, value in values.items():
            loose.bind_ortvalue_input(name, value)
        for name in self._outputs:
            loose.bind_output(name, device)
        if not self._graphs:  # the first run allocates the buffers of the outputs
            return _Buffers(inputs=values, binding=loose, graph=-1)
        # A graph needs outputs at fixed addresses: a run without a graph determines their shapes.
        self._session.run_with_iobinding(loose, self._run_options(-1))
        fixed = self._session.io_binding()
        for name, value in values.items():
            fixed.bind_ortvalue_input(name, value)
        for name, value in zip(self._outputs, loose.get_outputs(), strict=True):
            fixed.bind_ortvalue_output(name, value)
        self._last_graph += 1
        return _Buffers(inputs=values, binding=fixed, graph=self._last_graph)

    def _run_options(self, graph: int) -> Any:
        """Return the options of a run. ONNX Runtime captures a graph at its second run, then replays it; -1: never."""
        options = self._ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


def unavailable() -> str | None:
    """Return None if ONNX Runtime is installed with its CUDA provider, else how to install it."""
    if reason := missing_packages("gpu", "onnxruntime"):
        return reason
    try:
        providers = import_onnxruntime().get_available_providers()
    except BackendError as broken:
        return str(broken)
    if CUDA.name not in providers:
        return "this ONNX Runtime has no CUDA provider (pip uninstall onnxruntime, and pip install 'calotype[gpu]')"
    return None


BACKEND = Backend(
    name="onnxruntime-cuda",
    form="onnx",
    precisions=("fp32", "fp16"),
    packages=("onnxruntime-gpu", "onnxruntime"),
    unavailable=unavailable,
    open=lambda component, artifact: OnnxRuntimeCudaRunner(component, artifact, import_onnxruntime(), CUDA),
)
