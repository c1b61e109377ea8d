"""The tensorrt backend: runs engines of TensorRT 11 (tensorrt-rtx: TensorRT-RTX) over torch tensors.

An engine is a file that `calotype.export.tensorrt.builder` built for a GPU and a range of sizes. Each call may have
another size in that range. Components run one after another, so all engines share one buffer of working memory.

`TensorRtRunner.run` works on device tensors and torch's current stream, and does not wait. So kernels that are launched
between two engines run in order on the same stream, and one CUDA graph can capture them all. This module captures
nothing. Without a GPU it creates no object of TensorRT, as that may crash the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...cuda.device import TOO_LARGE, Gpu, device_full_message, free_bytes, is_full
from ...errors import BackendError, DeviceFullError
from ...weights.onnx import OnnxWeights
from ..base import Array, Arrays, Backend, DeviceNetwork, Runner, Tensors
from .library import LIBRARIES, create_log, import_library, unavailable_reason

if TYPE_CHECKING:
    from torch import Tensor

    from ...plan.plan import Artifact, PlannedComponent
    from ...weights.delta import WeightDeltas

_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8+fp16", "int8+bf16", "fp8+fp16", "fp8+bf16")

# TensorRT's name of a type -> torch's name.
_TYPES = {
    **{"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn"},
    **{"INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8", "BOOL": "bool"},
}

Shapes = Mapping[str, tuple[int, ...]]


class TensorRtRunner(Runner):
    """An engine with one execution context. Threads may share it; a lock lets one at a time enqueue its work."""

    def __init__(self, component: PlannedComponent, artifact: Artifact, trt: Any, gpu: Gpu) -> None:
        self.backend = str(trt.__name__).replace("_", "-")
        self.precision = artifact.precision
        self._name, self._path = component.name, artifact.path
        self.library, self._gpu = trt, gpu
        self._inputs = [b.name for b in component.inputs]
        self._outputs = [b.name for b in component.outputs]
        self._lock = threading.Lock()
        self.log = create_log(trt)
        self._runtime = trt.Runtime(self.log)  # must outlive the engine, and the engine its context
        self.engine = self._open(artifact)
        self._check_tensors()
        if self.engine.streamable_weights_size > 0:  # it was built to stream the weights that do not fit
            self.engine.weight_streaming_budget_v2 = self.engine.get_weight_streaming_automatic_budget()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = self.engine.create_execution_context(strategy)
        if self._context is None:
            raise self._error(f"TensorRT cannot create a context for {artifact.path}")
        self._shapes: Shapes = {}
        self._profile = 0  # the profile of a new context
        self._need_bytes = 0
        self._memory: tuple[int, int] | None = None  # address and size of the context's memory
        self.network = self._network()  # for graphs of the full pipeline

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Copy the inputs to the device, run, and return all outputs by name."""
        return self._gpu.run_arrays(self._name, self.run, inputs)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return each layer's weight shape. Raise `BackendError` if the engine was not built for refits."""
        return self._weights.shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Refit the engine to the weights of its graph, with these changed. CUDA graphs are captured again."""
        self._weights.check(deltas)
        with self._lock:
            self.refit(self._weights.path, self._weights.changed(deltas))
            self.network = self._network()  # a new object, which no captured graph has

    def refit(self, graph: Path, changed: Iterable[tuple[str, NDArray[np.generic]]] = ()) -> None:
        """Set the engine's weights to those of a graph of the same structure, with the `changed` initializers replaced.

        The caller makes sure that nothing runs meanwhile.

        Raises:
            BackendError: TensorRT refused the weights.
        """
        trt = self.library
        refitter = trt.Refitter(self.engine, self.log)
        reader = trt.OnnxParserRefitter(refitter, self.log)
        values = [(name, np.ascontiguousarray(value)) for name, value in changed]  # must outlive the reader
        accepted = (
            reader.load_model_proto(graph.read_bytes(), str(graph))
            and all(reader.load_initializer(name, value.ctypes.data, value.nbytes) for name, value in values)
            and reader.refit_model_proto()
            and refitter.refit_cuda_engine()
        )
        if not accepted:
            raise self._failed(f"TensorRT cannot refit the engine to {graph}: {self._reason()}")

    @cached_property
    def _weights(self) -> OnnxWeights:
        """The weights of the graph from which the engine was built: an engine has its own names for weights."""
        graph = next(self._path.parent.glob("*.onnx"), None)
        if graph is None or not self.engine.refittable:
            raise self._failed(
                f"the {self.backend} engine of the {self._name} was not built for refits. Build a plan whose engines "
                f"are (calotype build MODEL --backend {self.backend} --engine refit), or one with the LoRA in it "
                "(--lora FILE)."
            )
        return OnnxWeights(graph)

    def _network(self) -> Engine:
        return Engine(self, {name: self._type(name) for name in self._inputs})

    def run(self, inputs: Tensors) -> dict[str, Tensor]:
        """Enqueue one run on the current stream and return all outputs by name.

        Args:
            inputs: contiguous tensors on the device. They must stay alive until the run has ended.

        Raises:
            BackendError: the engine was not built for the sizes, a type is wrong, or the run failed.
        """
        with self._lock:
            stream = self._gpu.current_stream()
            memory = self._bind_inputs(inputs, stream)
            tensors = {}
            for name in self._outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                tensors[name] = self._gpu.empty(shape, self._type(name))
                self._bind(name, tensors[name], shape)
            if not self._context.execute_async_v3(stream):
                raise self._error("TensorRT failed")
            del memory  # later work on the stream may reuse it
            return tensors

    def _open(self, artifact: Artifact) -> Any:
        try:
            content = artifact.path.read_bytes()
        except OSError as failed:
            raise self._failed(f"{artifact.path} cannot be read: {failed.strerror}") from None
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None and is_full(self._reason()):
            fix = "build the plan in a lower precision, or with --engine weight-streaming"
            message = device_full_message(f"the weights of the {self._name}", self._reason(), fix)
            raise DeviceFullError(
                message, backend=self.backend, component=self._name, hint=fix, free_bytes=free_bytes()
            )
        if engine is None:  # of another version or for another GPU, or damaged
            raise self._failed(
                f"TensorRT cannot open {artifact.path}: {self._reason()}. "
                "An engine works with one version and one GPU model: build the plan again on this machine."
            )
        return engine

    def _check_tensors(self) -> None:
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == self.library.TensorIOMode.INPUT]
        outputs = set(names) - set(inputs)
        if set(inputs) != set(self._inputs) or outputs != set(self._outputs):
            raise self._failed(
                f"the engine has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                f"the plan expects {sorted(self._inputs)} and {sorted(self._outputs)}."
            )

    def _bind_inputs(self, inputs: Tensors, stream: int) -> Tensor:
        """Bind the inputs, with another profile if their sizes need one, and return the working memory."""
        shapes = {name: tuple(inputs[name].shape) for name in self._inputs}
        if shapes != self._shapes:
            self._reshape(shapes, stream)
        if self._gpu.capturing():  # not the shared buffer, which may be freed while the graph lives
            memory = self._gpu.empty((max(1, self._need_bytes),), "uint8")
        else:
            memory = self._gpu.arena(stream).at_least(self._need_bytes)
        region = (memory.data_ptr(), memory.numel())
        if region != self._memory:  # another runner enlarged it, or the stream is another one
            self._context.set_device_memory(*region)
            self._memory = region
        for name in self._inputs:
            self._bind(name, inputs[name], shapes[name])
        return memory

    def _reshape(self, shapes: Shapes, stream: int) -> None:
        self._shapes = {}  # if the change fails half-way, the next call starts over
        profile = self._profile_for(shapes)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream):
                raise self._failed(f"TensorRT cannot select profile {profile}: {self._reason()}")
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failed(f"TensorRT refuses {name} {list(shape)}: {self._reason()}")
        missing = self._context.infer_shapes()
        if missing:
            raise self._failed(f"TensorRT cannot infer the sizes of {', '.join(missing)} from the inputs.")
        self._need_bytes = self._context.update_device_memory_size_for_shapes()
        self._memory = None  # the context must get its memory again
        self._shapes = shapes

    def _profile_for(self, shapes: Shapes) -> int:
        """Return the first profile that fits: profiles for a single size come first."""
        count = self.engine.num_optimization_profiles
        for i in range(count):
            if all(_within(shape, self._profile_shapes(name, i)) for name, shape in shapes.items()):
                return i
        supported = "; or ".join(
            ", ".join(
                f"{n} {list(low)} to {list(high)}" for n in shapes for low, _, high in [self._profile_shapes(n, i)]
            )
            for i in range(count)
        )
        got = ", ".join(f"{n} {list(shape)}" for n, shape in shapes.items())
        raise self._failed(f"the engine was built for {supported}: got {got}. Build a plan for these sizes.")

    def _profile_shapes(self, name: str, profile: int) -> Sequence[tuple[int, ...]]:
        """Return an input's minimum, optimum and maximum shape in a profile."""
        return [tuple(dims) for dims in self.engine.get_tensor_profile_shape(name, profile)]

    def _bind(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        expected, got = self._type(name), str(tensor.dtype).removeprefix("torch.")
        if got != expected or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise self._failed(
                f"cannot bind {name}: got {got} {list(tensor.shape)}; expected {expected} {list(shape)}, contiguous."
            )
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise self._failed(f"TensorRT refuses the address of {name}: {self._reason()}")

    def _type(self, name: str) -> str:
        kind = str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in _TYPES:
            raise self._failed(f"the engine's {name} has type {kind}: expected one of {', '.join(_TYPES)}.")
        return _TYPES[kind]

    def _reason(self) -> str:
        return str(self.log.last_error or "it gave no reason")

    def _error(self, what: str) -> BackendError:
        """Return the error of a failed call: `DeviceFullError` if the device is full."""
        message = f"{what}: {self._reason()}"
        if is_full(message):
            what, fix = TOO_LARGE
            message, free = device_full_message(what, message, fix), free_bytes()
            return DeviceFullError(message, backend=self.backend, component=self._name, hint=fix, free_bytes=free)
        return self._failed(message)

    def _failed(self, message: str) -> BackendError:
        return BackendError(message, backend=self.backend, component=self._name)


class Engine(DeviceNetwork):
    """An engine as a function of tensors on the device."""

    def __init__(self, runner: TensorRtRunner, types: Mapping[str, str]) -> None:
        import torch

        self._runner = runner
        self._types = {name: getattr(torch, kind) for name, kind in types.items()}
        self.dtype = next((t for t in self._types.values() if t.is_floating_point), torch.float32)

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Cast the inputs to the engine's types, and return all outputs by name."""
        return self._runner.run({n: inputs[n].to(kind).contiguous() for n, kind in self._types.items()})


def _within(shape: tuple[int, ...], limits: Sequence[tuple[int, ...]]) -> bool:
    low, _, high = limits
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def open_with_library(library: str, component: PlannedComponent, artifact: Artifact) -> TensorRtRunner:
    """Open an engine with `tensorrt` or `tensorrt_rtx`, which must be available. Raise `BackendError` if it fails."""
    return TensorRtRunner(component, artifact, import_library(library), Gpu())


def backend_with(name: str) -> Backend:
    """Return the record of `tensorrt` or `tensorrt-rtx`."""
    return Backend(
        name=name,
        form=name,
        precisions=_PRECISIONS,
        packages=(f"{name}-cu13", name),
        unavailable=partial(unavailable_reason, name),
        open=partial(open_with_library, LIBRARIES[name]),
    )


BACKEND = backend_with("tensorrt")
