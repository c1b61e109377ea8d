"""The openvino backend: runs ONNX artifacts on OpenVINO's CPU device, in the artifact's float32, bfloat16 or int8.

A network is compiled for the exact shapes of its first call, and again for other shapes. With known sizes OpenVINO runs
the demonstration U-Net a fifth faster than with dynamic ones and compiles it as fast, and `rewrites` can simplify it.
`shapes` caches a few compiled shapes in memory, `cache` on disk. A batch runs in as many streams as there are threads.
`session` runs a denoiser for all steps of a batch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, InputError
from ...system import forks, threads
from ...system.memory import frees_after_run, one_heap
from ...weights.delta import NO_DELTAS
from ..onnxruntime.weights import OnnxWeights
from .cache import CompiledCache, files_of
from .graph import element_types, sized
from .pages import releasing_mapped_pages
from .requests import Request, Requests, plain, run, streams_for
from .rewrites import apply_rewrites, enabled_rewrites
from .session import OpenVinoSession
from .shapes import Compiled, CompiledShapes
from .weights import replace_constants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas
    from ..base import Arrays

FORM = "onnx"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8+bf16")

# Compute precision by the artifact's precision. fp16 files are only a smaller download: x86 has no fp16 arithmetic.
_HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}


def unavailable() -> str | None:
    """Return None if openvino is installed, else the command that installs it."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed (pip install 'calotype[cpu]')"
    return None


_CONVERTER = "openvino.tools.ovc"
_IMPORTING = forks.Lock()


def library() -> Any:
    """Import the package openvino without its model converter.

    Importing the converter sends telemetry over the network, writes an id into the user's home, and takes longer than
    all the rest. Without it openvino works, except for `convert_model`.
    """
    with _IMPORTING:
        blocked = "openvino" not in sys.modules and _CONVERTER not in sys.modules
        if blocked:
            sys.modules[_CONVERTER] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            if blocked:
                sys.modules.pop(_CONVERTER, None)


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core: one per process, as it holds the device's thread pool."""
    one_heap()  # before its threads start
    try:
        return library().Core()
    except Exception as failed:  # installed but broken: a bad plugin raises no ImportError
        raise BackendError(f"openvino cannot be imported: {plain(failed)}") from None


def _settings(precision: str, streams: int = 1) -> dict[str, Any]:
    """Return OpenVINO's settings for a network: its precision, its streams, and all available threads."""
    available = threads.available()
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # ACCURACY: OpenVINO must not lower float precision by itself. With int8 weights it has to, for activations.
        "EXECUTION_MODE_HINT": "PERFORMANCE" if "int8" in precision else "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": available,  # its default ignores container quotas
        # Pinned threads are faster, but all containers with a quota would pin to the machine's first cores.
        "ENABLE_CPU_PINNING": available == os.cpu_count(),
    }


class OpenVinoRunner:
    """A network on OpenVINO. Threads may share it; a lock lets one run at a time."""

    backend = "openvino"

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        if artifact.precision not in PRECISIONS:
            raise BackendError(f"openvino cannot run {artifact.precision}: expected one of {', '.join(PRECISIONS)}")
        self.precision = artifact.precision
        self.name, self._outputs = component.name, component.outputs
        self.notes: tuple[str, ...] = ()  # for reports
        self.output_names = [b.name for b in component.outputs]
        self.weights_bytes = _bytes_of(artifact)
        self.lock = forks.Lock()
        self._path = artifact.path
        if "bf16" in artifact.precision and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX)")
        self._read(NO_DELTAS)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Drop the compiled shapes and read the network again, with these weights changed."""
        self._weights.check(deltas)
        with self.lock:
            self._shapes.clear()
            self._read(deltas)

    @functools.cached_property
    def _weights(self) -> OnnxWeights:
        return OnnxWeights(self._path)

    def _read(self, deltas: WeightDeltas) -> None:
        core, path = _core(), self._path
        try:
            self._model = core.read_model(path)
        except Exception as failed:  # openvino raises RuntimeError and errors of its frontends
            raise BackendError(f"OpenVINO cannot open {path}: {plain(failed)}") from None
        if deltas:
            replace_constants(library(), self._model, self._weights.changed(deltas))
        # A half-precision file has casts at its borders, so its parts would not fit together; it is no faster here.
        self._floats = not {"f16", "bf16"} & element_types(self._model)
        named = {name for port in self._model.outputs for name in port.get_names()}
        missing = [b.name for b in self._outputs if b.name not in named]
        if missing:
            raise BackendError(f"{path} has no output {', '.join(missing)}, which the plan lists")
        self._rewrites = enabled_rewrites()
        self._cache = CompiledCache(
            library(), core, path, self.weights_bytes, {"patches": deltas.key, "rewrites": self._rewrites}
        )
        self._shapes = CompiledShapes(self.weights_bytes, on_disk=self._cache.worth_it)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return all outputs by name, copied out of OpenVINO's buffers."""
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        streams = streams_for(rows.pop()) if len(rows) == 1 and min(rows) > 0 else 1
        groups = [{name: np.split(array, streams)[i] for name, array in arrays.items()} for i in range(streams)]
        shapes = {name: array.shape for name, array in groups[0].items()}
        with self.lock:
            compiled = self.cached(
                f"{streams} {shapes}",
                lambda: Requests(self.compiled({"shapes": shapes}, lambda: self.sized(shapes), streams=streams)),
            )
            outputs = run(list(compiled.requests()), groups, self.output_names)
            if frees_after_run(self.name, (*arrays.values(), *outputs.values())):
                compiled.release()
        return {b.name: np.asarray(outputs[b.name], dtype=b.dtype) for b in self._outputs}

    def session(
        self, constants: Arrays, timesteps: np.ndarray[Any, Any], *, guided: bool, cache_interval: int
    ) -> OpenVinoSession | None:
        """Return a denoising session (see `calotype.backends.session`); None for graphs that cannot be partitioned."""
        if not self._floats:
            return None
        return OpenVinoSession(self, constants, timesteps, guided=guided, cache_interval=cache_interval)

    def cached(self, key: str, make: Callable[[], Compiled]) -> Compiled:
        """Return the cached value of this key, or make it now. The caller holds the lock."""
        return self._shapes(key, make)

    def sized(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Return the graph for these shapes."""
        return sized(self._model, shapes)

    def compiled(
        self, key: Mapping[str, Any], graph: Callable[[], Any], *, streams: int = 1, precise: bool = False
    ) -> list[Request]:
        """Return a request for each stream of a graph, compiled now or read from the disk cache.

        Args:
            key: everything besides this network that the graph depends on.
            graph: makes the graph, if the cache does not have it.
            streams: the number of streams.
            precise: compute in float32, whatever the artifact's precision is.
        """
        settings = _settings("fp32" if precise else self.precision, streams)
        compiled = self._cache.read(key, settings)
        if compiled is None:
            with releasing_mapped_pages(files_of(self._path)):
                compiled = self._compile(key, graph, settings)
                self._cache.write(key, settings, compiled)
        return [Request(compiled) for _ in range(streams)]

    def _compile(self, key: Mapping[str, Any], graph: Callable[[], Any], settings: Mapping[str, Any]) -> Any:
        try:
            model = graph()
            apply_rewrites(model, self._rewrites)
            compiled = _core().compile_model(model, "CPU", dict(settings))
        except InputError:
            raise
        except Exception as failed:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in key["shapes"].items())
            raise BackendError(f"OpenVINO cannot compile the {self.name} for {shapes}: {plain(failed)}") from failed
        expected, got = settings["INFERENCE_PRECISION_HINT"], compiled.get_property("INFERENCE_PRECISION_HINT")
        got = str(got.get_type_name() if hasattr(got, "get_type_name") else got)
        if got != expected:  # OpenVINO may ignore a hint
            raise BackendError(f"OpenVINO cannot compute in {expected}: it selected {got}")
        return compiled


def _bytes_of(artifact: Artifact) -> int:
    """Return the size of the ONNX file with its external data."""
    try:
        return sum(p.stat().st_size for p in files_of(artifact.path))
    except OSError:
        return 0


def open_runner(component: PlannedComponent, artifact: Artifact) -> OpenVinoRunner:
    """Open an ONNX file. The first call compiles it for its shapes."""
    return OpenVinoRunner(component, artifact)
