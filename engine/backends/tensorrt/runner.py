"""The tensorrt backend: engines of TensorRT 11 (or, as tensorrt-rtx, of TensorRT-RTX) over torch tensors, on torch's
current stream.

An engine is a file that `calotype.export.tensorrt.builder` made for a GPU and a range of sizes; of those sizes every
call may take another. Working memory is not the engines' own: components run one after another, so they share one
buffer.

`TensorRtRunner.run` takes and gives tensors on the device and waits for nothing: kernels launched between two engines
land on the same stream, and a captured graph holds them all. Nothing here captures. Without a GPU nothing of TensorRT is
made, as that may end the process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...cuda.device import Gpu, is_full, no_room, run_or_device_full
from ...errors import BackendError, DeviceFullError
from .library import imported, lacking, log_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas
    from ..base import Arrays
    from ..onnxruntime.weights import OnnxWeights

FORM = "tensorrt"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8+fp16", "int8+bf16", "fp8+fp16", "fp8+bf16")

# TensorRT's name of a type -> torch's.
_TYPES = {
    **{"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn"},
    **{"INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"},
}

_TOO_LARGE = ("a run of this size", "ask for smaller pictures, or fewer at once")

Shapes = Mapping[str, tuple[int, ...]]


def unavailable() -> str | None:
    """None where there is a GPU that torch can use and TensorRT is installed, else what is lacking."""
    return lacking("tensorrt", "tensorrt")


def open_runner(component: PlannedComponent, artifact: Artifact) -> TensorRtRunner:
    """Open an engine. Raises `BackendError` where it cannot run here."""
    reason = unavailable()
    if reason is not None:
        raise BackendError(f"{reason}.")
    return opened_with("tensorrt", component, artifact)


def opened_with(library: str, component: PlannedComponent, artifact: Artifact) -> TensorRtRunner:
    """The same with either library, where it is known to run here."""
    return TensorRtRunner(component, artifact, imported(library), Gpu())


class TensorRtRunner:
    """An engine with one context. Threads may share it: a lock lets one at a time put its work on the stream."""

    def __init__(self, component: PlannedComponent, artifact: Artifact, trt: Any, gpu: Gpu) -> None:
        self.backend = str(trt.__name__).replace("_", "-")
        self.precision = artifact.precision
        self._name, self._path = component.name, artifact.path
        self._trt, self._gpu = trt, gpu
        self._inputs = [b.name for b in component.inputs]
        self._outputs = [b.name for b in component.outputs]
        self._lock = threading.Lock()
        self._log = log_of(trt)
        self._runtime = trt.Runtime(self._log)  # must outlive the engine, and the engine its context
        self._engine = self._opened(artifact)
        self._check_tensors()
        self._stream_weights()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise self._failed(f"TensorRT makes no context of {artifact.path}")
        self._shapes: Shapes = {}
        self._profile = 0  # that a fresh context stands on
        self._need_bytes = 0
        self._memory: tuple[int, int] | None = None  # address and bytes of what the context was told
        self.network = self._network()  # as a whole picture calls it

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs by name, through the device and back."""
        with self._gpu.side_stream(), self._gpu.named(self._name):
            return run_or_device_full(lambda: self._carried(inputs), *_TOO_LARGE)

    def _carried(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        given = {name: self._gpu.put(array) for name, array in inputs.items()}
        return {name: self._gpu.fetch(tensor) for name, tensor in self.run(given).items()}

    @property
    def library(self) -> Any:
        """The module that it was opened with."""
        return self._trt

    @property
    def engine(self) -> Any:
        """The library's own object."""
        return self._engine

    @property
    def log(self) -> Any:
        """What the library says into; `told` is its last error."""
        return self._log

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer -> its weight's shape. Raises `BackendError` where the engine was not built to be refitted."""
        return self._weights.shapes()

    def update_weights(self, patches: WeightDeltas) -> None:
        """Refit: the weights of the graph that it was built of, with these changed. Graphs are captured anew."""
        from .refit import refit

        self._weights.check(patches)
        with self._lock:
            refit(self, self._weights.path, self._weights.changed(patches))
            self.network = self._network()  # that no captured graph knows

    @cached_property
    def _weights(self) -> OnnxWeights:
        from .refit import weights_beside

        return weights_beside(self._path, self._engine, backend=self.backend, name=self._name)

    def _network(self) -> Engine:
        return Engine(self, self._outputs, {n: self._type(n) for n in self._inputs})

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Put one run on the current stream; all outputs by name, into `outputs` where they are given.

        The tensors lie on the device, contiguous. They must stay alive until the stream has done with them. Raises
        `BackendError` for sizes that the engine was not built for, for types that are not its own, or where it fails.
        """
        with self._lock:
            stream = self._gpu.current_stream()
            memory = self._take(inputs, stream)
            made = dict(outputs or {})
            for name in self._outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                if name not in made:
                    made[name] = self._gpu.empty(shape, self._type(name))
                self._bind(name, made[name], shape)
            if not self._context.execute_async_v3(stream):
                raise self._failed("TensorRT failed")
            del memory  # from here on it may serve what comes next on the stream
            return made

    def _opened(self, artifact: Artifact) -> Any:
        try:
            content = artifact.path.read_bytes()
        except OSError as lacking:
            raise BackendError(f"{artifact.path} cannot be read ({lacking.strerror}).") from None
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None and is_full(self._why()):
            mend = "build the plan in a lower precision, or with --engine weight-streaming"
            raise DeviceFullError(no_room(f"the weights of the {self._name}", self._why(), mend))
        if engine is None:  # of another version or another GPU, or damaged
            raise BackendError(
                f"TensorRT cannot open {artifact.path}: {self._why()}. "
                "An engine is made for one version and one kind of GPU: build the plan again here."
            )
        return engine

    def _stream_weights(self) -> None:
        """Of an engine whose weights may stay in host memory, as many as the device has no room for."""
        if self._engine.streamable_weights_size > 0:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()

    def _check_tensors(self) -> None:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = [n for n in names if self._engine.get_tensor_mode(n) == self._trt.TensorIOMode.INPUT]
        if set(given) != set(self._inputs) or set(names) - set(given) != set(self._outputs):
            raise BackendError(
                f"the engine takes {sorted(given)} and gives {sorted(set(names) - set(given))}; "
                f"the plan says {sorted(self._inputs)} and {sorted(self._outputs)}."
            )

    def _take(self, inputs: Mapping[str, Tensor], stream: int) -> Tensor:
        """Bind the inputs, after a change of sizes on the profile that fits them; the memory that it works in."""
        shapes = {name: tuple(inputs[name].shape) for name in self._inputs}
        if shapes != self._shapes:
            self._reshape(shapes, stream)
        if self._gpu.capturing():  # the graph's own: the shared buffer may be let go of while the graph lives on
            memory = self._gpu.empty((max(1, self._need_bytes),), "uint8")
        else:
            memory = self._gpu.arena(stream).at_least(self._need_bytes)
        place = (memory.data_ptr(), memory.numel())
        if place != self._memory:  # another runner made it larger, or it is another stream's
            self._context.set_device_memory(*place)
            self._memory = place
        for name in self._inputs:
            self._bind(name, inputs[name], shapes[name])
        return memory

    def _reshape(self, shapes: Shapes, stream: int) -> None:
        self._shapes = {}  # of a change that fails half-way nothing is relied on
        profile = self._profile_for(shapes)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream):
                raise BackendError(f"TensorRT cannot change to profile {profile}: {self._why()}")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"TensorRT refuses {name} {list(shape)}: {self._why()}")
        lacking = self._context.infer_shapes()
        if lacking:
            raise BackendError(f"TensorRT cannot tell the sizes of {', '.join(lacking)} from the inputs'.")
        self._need_bytes = self._context.update_device_memory_size_for_shapes()
        self._memory = None  # the context divides its memory anew
        self._shapes = shapes

    def _profile_for(self, shapes: Shapes) -> int:
        """The first that fits: those for a single size come first."""
        count = self._engine.num_optimization_profiles
        for i in range(count):
            if all(_within(shape, self._ends(name, i)) for name, shape in shapes.items()):
                return i
        told = "; or ".join(
            ", ".join(f"{n} {list(low)} to {list(high)}" for n in shapes for low, _, high in [self._ends(n, i)])
            for i in range(count)
        )
        asked = ", ".join(f"{n} {list(shape)}" for n, shape in shapes.items())
        raise BackendError(f"the engine was built for {told}, and was given {asked}; build a plan for these sizes.")

    def _ends(self, name: str, profile: int) -> Sequence[tuple[int, ...]]:
        """The least, the usual and the most of an input."""
        return [tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, profile)]

    def _bind(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        wanted = self._type(name)
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind != wanted or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise BackendError(
                f"{name} is wanted as {wanted} {list(shape)}, contiguous; got {kind} {list(tensor.shape)}."
            )
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise BackendError(f"TensorRT refuses the address of {name}: {self._why()}")

    def _type(self, name: str) -> str:
        kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _TYPES:
            raise BackendError(f"the engine's {name} is of type {kind}, which torch has no name for.")
        return _TYPES[kind]

    def _why(self) -> str:
        return str(self._log.told or "it says nothing of why")

    def _failed(self, what: str) -> BackendError:
        """The error of a call that failed: a device that is full has a kind of its own."""
        told = f"{what}: {self._why()}"
        return DeviceFullError(no_room(_TOO_LARGE[0], told, _TOO_LARGE[1])) if is_full(told) else BackendError(told)


class Engine:
    """An engine as a function of tensors on the device: a whole picture is made of these. Waits for nothing."""

    def __init__(self, runner: TensorRtRunner, outputs: Sequence[str], types: Mapping[str, str]) -> None:
        import torch

        self._runner, self._outputs = runner, outputs
        self._types = {name: getattr(torch, kind) for name, kind in types.items()}
        self.dtype = next((t for t in self._types.values() if t.is_floating_point), torch.float32)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs in their order; inputs are cast to the engine's types."""
        made = self._runner.run({n: inputs[n].to(kind).contiguous() for n, kind in self._types.items()})
        return tuple(made[name] for name in self._outputs)


def _within(shape: tuple[int, ...], ends: Sequence[tuple[int, ...]]) -> bool:
    low, _, high = ends
    fits = len(shape) == len(low)
    return fits and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
