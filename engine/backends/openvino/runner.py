"""The openvino backend: ONNX artifacts on OpenVINO's CPU device, in float32, bfloat16 or int8 by the artifact's word.

A network is compiled for the exact shapes of its first call, and again for other shapes: with all sizes known OpenVINO
runs the demonstration U-Net a fifth faster than with dynamic ones, and is ready no later, and `rewrites` can give
it less to do. A few of these are kept; `cache` keeps them on disk as well. Many pictures go through in as many
streams as there are threads for; the calls of a denoiser for one picture are a `series`.
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

# What is computed in, by the artifact's precision: fp16 files are a smaller download, x86 has no arithmetic for them.
_HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}


def unavailable() -> str | None:
    """None where openvino is installed, else the line that installs it."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed (pip install 'calotype[cpu]')"
    return None


_CONVERTER = "openvino.tools.ovc"
_IMPORTING = forks.Lock()


def library() -> Any:
    """The package openvino, imported without its model converter.

    Importing the converter reports the import to its makers over the network, writes an id into the user's home, and
    takes longer than all the rest. openvino does without it (and without `convert_model`) where it cannot be imported.
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
    """OpenVINO's core: one a process, as it holds the device's thread pool."""
    one_heap()  # before its threads start
    try:
        return library().Core()
    except Exception as failed:  # installed, and broken: a missing library is an ImportError, a bad plugin is not
        raise BackendError(f"openvino cannot be imported: {plain(failed)}") from None


def _settings(precision: str, streams: int = 1) -> dict[str, Any]:
    """How OpenVINO is to run a network: in so many streams, on all threads that we may have."""
    ours = threads.available()
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # For floats: lower nothing of its own accord. It would lower the activations of int8 weights, as it should.
        "EXECUTION_MODE_HINT": "PERFORMANCE" if "int8" in precision else "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": ours,  # its own guess ignores container quotas
        # Pinned threads are faster, but containers with a quota would all be pinned to the machine's first cores.
        "ENABLE_CPU_PINNING": ours == os.cpu_count(),
    }


class OpenVinoRunner:
    """A network on OpenVINO. Threads may share it: a lock lets one in, as the single stream would anyway."""

    backend = "openvino"

    def __init__(self, component: PlannedComponent, artifact: Artifact) -> None:
        if artifact.precision not in PRECISIONS:
            raise BackendError(f"openvino runs {', '.join(PRECISIONS)}, and the artifact is {artifact.precision}")
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
        """Layer -> its weight's shape."""
        return self._weights.shapes()

    def update_weights(self, patches: WeightDeltas) -> None:
        """The network read anew, with these weights changed; what is compiled is let go of first."""
        self._weights.check(patches)
        with self.lock:
            self._shapes.clear()
            self._read(patches)

    @functools.cached_property
    def _weights(self) -> OnnxWeights:
        return OnnxWeights(self._path)

    def _read(self, patches: WeightDeltas) -> None:
        core, path = _core(), self._path
        try:
            self._model = core.read_model(path)
        except Exception as failed:  # openvino raises RuntimeError, and kinds of its frontends
            raise BackendError(f"OpenVINO cannot open {path}: {plain(failed)}") from None
        if patches:
            replace_constants(library(), self._model, self._weights.changed(patches))
        # A file in half precision has casts at its borders: what is cut out of it would not fit. It is no faster here.
        self._floats = not {"f16", "bf16"} & element_types(self._model)
        named = {name for port in self._model.outputs for name in port.get_names()}
        lacking = [b.name for b in self._outputs if b.name not in named]
        if lacking:
            raise BackendError(f"{path} gives no {', '.join(lacking)}; the plan says that it does")
        self._rewrites = enabled_rewrites()
        self._cache = CompiledCache(
            library(), core, path, self.weights_bytes, {"patches": patches.key, "rewrites": self._rewrites}
        )
        self._shapes = CompiledShapes(self.weights_bytes, on_disk=self._cache.worth_it)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs by name, copied out of OpenVINO's buffers."""
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        rows = {array.shape[0] if array.ndim else 0 for array in given.values()}
        streams = streams_for(rows.pop()) if len(rows) == 1 and min(rows) > 0 else 1
        groups = [{name: np.split(array, streams)[i] for name, array in given.items()} for i in range(streams)]
        shapes = {name: array.shape for name, array in groups[0].items()}
        with self.lock:
            kept = self.kept(
                f"{streams} {shapes}",
                lambda: Requests(self.compiled({"shapes": shapes}, lambda: self.sized(shapes), streams=streams)),
            )
            got = run(list(kept.requests()), groups, self.output_names)
            if frees_after_run(self.name, (*given.values(), *got.values())):
                kept.release()
        return {b.name: np.asarray(got[b.name], dtype=b.dtype) for b in self._outputs}

    def session(
        self, given: Arrays, timesteps: np.ndarray[Any, Any], *, guided: bool, cache_interval: int
    ) -> OpenVinoSession | None:
        """The calls of a denoiser for one batch (see `calotype.backends.session`); None for graphs that stay whole."""
        return (
            OpenVinoSession(self, given, timesteps, guided=guided, cache_interval=cache_interval)
            if self._floats
            else None
        )

    def kept(self, key: str, make: Callable[[], Compiled]) -> Compiled:
        """What was made for this key, or is made now; those not used for longest are let go of. Under the lock."""
        return self._shapes(key, make)

    def sized(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The graph for these shapes."""
        return sized(self._model, shapes)

    def compiled(
        self, key: Mapping[str, Any], graph: Callable[[], Any], *, streams: int = 1, precise: bool = False
    ) -> list[Request]:
        """A request for each stream of a graph, which is made only where it was not compiled before.

        `key` says all that decides the graph, beside this network; `precise` is for float32, whatever the artifact is.
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
            raise BackendError(f"OpenVINO cannot compile it for {_said(key)}: {plain(failed)}") from failed
        wanted = settings["INFERENCE_PRECISION_HINT"]
        taken = _short(compiled.get_property("INFERENCE_PRECISION_HINT"))
        if taken != wanted:  # a hint is no more than that
            raise BackendError(f"OpenVINO was asked to compute in {wanted} and took {taken}")
        return compiled


def _short(element_type: Any) -> str:
    """openvino.Type.f32 as "f32"."""
    return str(element_type.get_type_name() if hasattr(element_type, "get_type_name") else element_type)


def _said(key: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in key["shapes"].items())


def _bytes_of(artifact: Artifact) -> int:
    """The ONNX file with its external data."""
    try:
        return sum(p.stat().st_size for p in files_of(artifact.path))
    except OSError:
        return 0


def open_runner(component: PlannedComponent, artifact: Artifact) -> OpenVinoRunner:
    """Open an ONNX file; it is compiled when the shapes of the first call are known."""
    return OpenVinoRunner(component, artifact)
