"""The onnxruntime-cuda backend: ONNX artifacts on ONNX Runtime's CUDA provider, bound to buffers on the device.

Inputs are copied into buffers that stay where they are for each set of shapes, which is what ONNX Runtime's own CUDA
graph needs: a run of shapes seen before is one launch. A graph wants every node on the GPU; where the provider leaves
some to the CPU, the session is opened without, and `notes` say so. Needs no torch.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cuda.device import is_full
from ...errors import BackendError, DeviceFullError, first_line
from ...system.lru_cache import LruCache
from ...weights.delta import NO_DELTAS
from .weights import OnnxWeights

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas
    from ..base import Arrays

FORM = "onnx"
PRECISIONS = ("fp32", "fp16")

_KEPT = 8  # sets of shapes whose buffers and graphs are kept; the one not seen for longest gives way
_MEND = "ask for smaller pictures, or fewer at once"


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Where a session runs: ONNX Runtime's name of the provider, its options, and the device of the buffers."""

    name: str
    device: str
    options: Mapping[str, str] = field(default_factory=dict)
    graphs: bool = False


# TF32 is off, so that float32 is what it says; half graphs have their own types.
CUDA = Provider(name="CUDAExecutionProvider", device="cuda", options={"use_tf32": "0"}, graphs=True)


def unavailable() -> str | None:
    """None where ONNX Runtime is installed with its CUDA provider, else the line that installs it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install 'calotype[gpu]')"
    try:
        import onnxruntime as ort
    except ImportError as broken:
        return f"onnxruntime cannot be imported: {first_line(broken)}"
    if CUDA.name not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider (pip uninstall onnxruntime, and pip install 'calotype[gpu]')"
    return None


def open_runner(component: PlannedComponent, artifact: Artifact) -> OnnxRuntimeCudaRunner:
    """Open a session. Raises `BackendError` where the CUDA provider cannot run it."""
    reason = unavailable()
    if reason is not None:
        raise BackendError(f"{reason}.")
    import onnxruntime as ort

    return OnnxRuntimeCudaRunner(component, artifact, ort, CUDA)


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """The buffers of one set of shapes. `graph` is ONNX Runtime's number for what it captured of it."""

    inputs: Mapping[str, Any]
    binding: Any
    graph: int


class OnnxRuntimeCudaRunner:
    """A session with its buffers. Threads may share it: one at a time runs."""

    backend = "onnxruntime-cuda"

    def __init__(self, component: PlannedComponent, artifact: Artifact, ort: Any, provider: Provider) -> None:
        self.precision = artifact.precision
        self.notes: tuple[str, ...] = ()
        self._ort, self._provider = ort, provider
        self._path = artifact.path
        self._outputs = [b.name for b in component.outputs]
        self._lock = threading.Lock()
        self._kept: LruCache[_Bound] = LruCache(_KEPT)
        self._numbered = 0
        self._graphs = provider.graphs
        try:
            self._session = self._open(NO_DELTAS)
        except BackendError as failed:
            if not self._graphs:
                raise
            self._graphs = False
            self._session = self._open(NO_DELTAS)
            self.notes = (f"the {component.name} runs without a CUDA graph on ONNX Runtime: {failed}",)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs by name, through buffers on the device."""
        with self._lock:
            try:
                bound = self._bound(inputs)
                for name, array in inputs.items():
                    bound.inputs[name].update_inplace(np.ascontiguousarray(array))
                self._session.run_with_iobinding(bound.binding, self._run_options(bound.graph))
                return dict(zip(self._outputs, bound.binding.copy_outputs_to_cpu(), strict=True))
            except Exception as failed:  # onnxruntime raises its own kinds, all derived from Exception alone
                told = first_line(failed)
                if not is_full(told):
                    raise
            self._kept.clear()  # their buffers go with them
        raise DeviceFullError(f"the GPU has no room for a run of this size ({told}); {_MEND}.")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer -> its weight's shape."""
        return self._weights.shapes()

    def update_weights(self, patches: WeightDeltas) -> None:
        """A session anew, with these weights changed. The one before goes first, with its graphs."""
        self._weights.check(patches)
        with self._lock:
            self._kept.clear()
            self._session = None
            self._session = self._open(patches)

    @cached_property
    def _weights(self) -> OnnxWeights:
        return OnnxWeights(self._path)

    def _open(self, patches: WeightDeltas) -> Any:
        ort, provider = self._ort, self._provider
        options = ort.SessionOptions()
        options.log_severity_level = 3
        weights = self._weights.given(ort, options, patches) if patches else nullcontext()
        told = {**provider.options, **({"enable_cuda_graph": "1"} if self._graphs else {})}
        try:
            with weights:
                session = ort.InferenceSession(str(self._path), options, providers=[(provider.name, told)])
        except Exception as failed:
            raise BackendError(f"ONNX Runtime cannot open {self._path}: {first_line(failed)}") from None
        got = session.get_providers()
        if got[:1] != [provider.name]:  # it falls back with no more than a log line
            raise BackendError(f"ONNX Runtime was asked for {provider.name} and took {', '.join(got)}")
        return session

    def _bound(self, inputs: Arrays) -> _Bound:
        """The buffers for these shapes: kept ones, or new ones."""
        key = tuple((n, tuple(a.shape)) for n, a in sorted(inputs.items()))
        return self._kept(key, lambda: self._new(inputs))

    def _new(self, inputs: Arrays) -> _Bound:
        # Copies: on a CPU, as in tests, a value is the array that it was made from, and every call writes into it.
        given = {name: self._on_device(np.array(array, order="C")) for name, array in inputs.items()}
        loose = self._session.io_binding()
        for name, value in given.items():
            loose.bind_ortvalue_input(name, value)
        for name in self._outputs:
            loose.bind_output(name, self._provider.device)
        if not self._graphs:  # its first run makes the outputs' buffers, and keeps them
            return _Bound(inputs=given, binding=loose, graph=-1)
        # A graph wants its outputs where they stay: a run outside of it tells their shapes.
        self._session.run_with_iobinding(loose, self._run_options(-1))
        fixed = self._session.io_binding()
        for name, value in given.items():
            fixed.bind_ortvalue_input(name, value)
        for name, value in zip(self._outputs, loose.get_outputs(), strict=True):
            fixed.bind_ortvalue_output(name, value)
        self._numbered += 1
        return _Bound(inputs=given, binding=fixed, graph=self._numbered)

    def _on_device(self, array: np.ndarray[Any, Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._provider.device, 0)

    def _run_options(self, graph: int) -> Any:
        """`graph` is what is captured at its second run and replayed from its third; -1 is not to be captured."""
        options = self._ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options
