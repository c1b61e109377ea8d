"""A network that OpenVINO compiles for the exact shapes of each call.

With known sizes OpenVINO runs the demonstration U-Net a fifth faster than with dynamic ones and compiles it as fast,
and `rewrites` can simplify it. `shapes` caches a few compiled shapes in memory, `cache` on disk. A batch runs in as
many streams as there are threads.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, InputError
from ...system import forks, threads
from ...system.memory import frees_after_run, one_heap
from ...weights.delta import NO_DELTAS, WeightDeltas
from ...weights.onnx import OnnxWeights
from ..base import Array, Arrays
from .cache import CompiledCache, files_of
from .graph import element_types, sized
from .one_graph import OneGraph
from .pages import releasing_mapped_pages
from .requests import Request, plain, run, streams_for
from .rewrites import apply_rewrites, enabled_rewrites
from .shapes import CompiledShapes

if TYPE_CHECKING:
    from ...plan.plan import Artifact, PlannedComponent

# Compute precision by the artifact's precision. fp16 files are only a smaller download: x86 has no fp16 arithmetic.
HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}
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
def core() -> Any:
    """Return OpenVINO's core: one per process, as it holds the device's thread pool."""
    one_heap()  # before its threads start
    try:
        return library().Core()
    except Exception as failed:  # installed but broken: a bad plugin raises no ImportError
        raise BackendError(f"openvino cannot be imported: {plain(failed)}", backend="openvino") from None


def unsupported(precision: str) -> str | None:
    """Return why this CPU cannot compute in the precision, or None if it can."""
    if "bf16" in precision and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX)"
    return None


def hardware() -> str:
    """Return the CPU, and the precisions in which it computes."""
    names = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    return " ".join(str(core().get_property("CPU", name)) for name in names)


class Network:
    """A network of one ONNX file. Threads may share it; `lock` lets one use its requests at a time.

    Attributes:
        weights_bytes: the size of the file with its external data.
        cached: the compiled shapes. The caller holds the lock.
        floats: its weights are float32 or quantized. A file in half has casts at its borders, so its parts would not
            fit together; it is no faster here.
    """

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        """Read the file. Raise `BackendError` if it cannot run here. The first call compiles it for its shapes."""
        self.name, self.precision, self.path = component.name, artifact.precision, artifact.path
        if artifact.precision not in HINTS:
            raise self._failed(f"openvino cannot run {artifact.precision}: expected one of {', '.join(HINTS)}")
        if reason := unsupported(artifact.precision):
            raise self._failed(reason)
        self.output_names = [b.name for b in component.outputs]
        self._dtypes = {b.name: b.dtype for b in component.outputs}
        self.weights_bytes = sum(file.stat().st_size for file in files_of(self.path))
        self.notes: tuple[str, ...] = ()
        self.lock = forks.Lock()
        self._read(NO_DELTAS)

    @functools.cached_property
    def _weights(self) -> OnnxWeights:
        return OnnxWeights(self.path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Drop the compiled shapes and read the network again, with these weights changed."""
        self._weights.check(deltas)
        with self.lock:
            self.cached.clear()
            self._read(deltas)

    def _read(self, deltas: WeightDeltas) -> None:
        try:
            self._model = core().read_model(self.path)
        except Exception as failed:  # openvino raises RuntimeError and errors of its frontends
            raise self._failed(f"OpenVINO cannot open {self.path}: {plain(failed)}") from None
        if deltas:
            _replace_constants(self._model, self._weights.changed(deltas))
        self.floats = not {"f16", "bf16"} & element_types(self._model)
        names = {name for port in self._model.outputs for name in port.get_names()}
        missing = [name for name in self.output_names if name not in names]
        if missing:
            raise self._failed(f"{self.path} has no output {', '.join(missing)}, which the plan lists")
        self._rewrites = enabled_rewrites()
        identity = {"patches": deltas.key, "rewrites": self._rewrites}
        self._cache = CompiledCache(library(), core(), self.path, self.weights_bytes, identity)
        self.cached = CompiledShapes(self.weights_bytes, on_disk=self._cache.worth_it)

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Run the network as one graph and return all outputs by name, copied out of OpenVINO's buffers."""
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        streams = streams_for(rows.pop()) if len(rows) == 1 and min(rows) > 0 else 1
        groups = [{name: np.split(array, streams)[i] for name, array in arrays.items()} for i in range(streams)]
        shapes = {name: array.shape for name, array in groups[0].items()}
        with self.lock:
            precise = self.floats and HINTS[self.precision] != "f32"
            compiled = self.cached(
                f"{streams} {shapes}", lambda: OneGraph(self, shapes, streams, precise_timesteps=precise)
            )
            assert isinstance(compiled, OneGraph)
            outputs = run(compiled.requests, compiled.inputs(groups), self.output_names)
            if frees_after_run(self.name, (*arrays.values(), *outputs.values())):
                compiled.release()
        return {name: np.asarray(outputs[name], dtype=dtype) for name, dtype in self._dtypes.items()}

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
            with releasing_mapped_pages(files_of(self.path)):
                compiled = self._compile(key, graph, settings)
                self._cache.write(key, settings, compiled)
        return [Request(compiled) for _ in range(streams)]

    def _compile(self, key: Mapping[str, Any], graph: Callable[[], Any], settings: Mapping[str, Any]) -> Any:
        try:
            model = graph()
            apply_rewrites(model, self._rewrites)
            compiled = core().compile_model(model, "CPU", dict(settings))
        except InputError:
            raise
        except Exception as failed:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in key["shapes"].items())
            raise self._failed(f"OpenVINO cannot compile the {self.name} for {shapes}: {plain(failed)}") from failed
        expected, got = settings["INFERENCE_PRECISION_HINT"], compiled.get_property("INFERENCE_PRECISION_HINT")
        got = str(got.get_type_name() if hasattr(got, "get_type_name") else got)
        if got != expected:  # OpenVINO may ignore a hint
            raise self._failed(f"OpenVINO cannot compute in {expected}: it selected {got}")
        return compiled

    def _failed(self, message: str) -> BackendError:
        return BackendError(message, backend="openvino", component=self.name)


def _settings(precision: str, streams: int = 1) -> dict[str, Any]:
    """Return OpenVINO's settings for a network: its precision, its streams, and all available threads."""
    available = threads.available()
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        # ACCURACY: OpenVINO must not lower float precision by itself. With int8 weights it has to, for activations.
        "EXECUTION_MODE_HINT": "PERFORMANCE" if "int8" in precision else "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": available,  # its default ignores container quotas
        # Pinned threads are faster, but all containers with a quota would pin to the machine's first cores.
        "ENABLE_CPU_PINNING": available == os.cpu_count(),
    }


def _replace_constants(model: Any, changed: Iterable[tuple[str, NDArray[np.generic]]]) -> None:
    """Replace the constants of these ONNX initializers, in a network that is not compiled yet.

    Raises:
        BackendError: the network has no such constant, or a new constant does not hold the new value.
    """
    openvino = library()
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    for name, value in changed:
        old = constants.get(name)
        readers = [] if old is None else list(old.output(0).get_target_inputs())
        if old is None or not readers or tuple(old.shape) != value.shape:
            raise BackendError(f"OpenVINO has no constant {name} of shape {list(value.shape)}.", backend="openvino")
        tensor = openvino.Tensor(old.get_element_type(), openvino.Shape(value.shape))
        tensor.data.view(value.dtype)[...] = value  # bfloat16, which numpy lacks, is copied as bits
        new = openvino.op.Constant(tensor)
        new.set_friendly_name(name)
        if np.asarray(new.data).tobytes() != value.tobytes():
            raise BackendError(f"OpenVINO did not store the new value of {name}.", backend="openvino")
        for reader in readers:
            reader.replace_source_output(new.output(0))
