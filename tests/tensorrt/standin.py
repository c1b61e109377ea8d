"""A TensorRT that works without a GPU: its engines are ONNX Runtime's sessions, its device memory is the host's.

It has the names that our code uses and no others, each of them TensorRT 11.4's (a test holds it to that). An engine is
the graph with its profiles; sizes outside of them are refused, as the real one does.
"""

import ctypes
import pickle
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__name__ = "tensorrt"  # as the library says of itself

_TYPES = {1: "FLOAT", 7: "INT64", 10: "HALF", 16: "BF16"}
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "HALF": np.float16}


class ILogger:
    INTERNAL_ERROR, ERROR = "ILogger.INTERNAL_ERROR", "ILogger.ERROR"


class IProgressMonitor:
    pass


class BuilderFlag:
    REFIT, REFIT_INDIVIDUAL, REFIT_IDENTICAL = "REFIT", "REFIT_INDIVIDUAL", "REFIT_IDENTICAL"
    WEIGHT_STREAMING, VERSION_COMPATIBLE, TF32 = "WEIGHT_STREAMING", "VERSION_COMPATIBLE", "TF32"


class ExecutionContextAllocationStrategy:
    USER_MANAGED = "USER_MANAGED"


class TensorIOMode:
    INPUT = "TensorIOMode.INPUT"


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+"


class IOptimizationProfile:
    def __init__(self) -> None:
        self._ends = {}

    def set_shape(self, name, least, usual, most) -> None:
        self._ends[name] = (tuple(least), tuple(usual), tuple(most))


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags, self._profiles, self._cache = {"TF32"}, [], None

    def set_flag(self, flag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile) -> int:
        self._profiles.append(profile._ends)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


class INetworkDefinition:
    def __init__(self) -> None:
        self._graph = b""

    @property
    def num_inputs(self) -> int:
        return len(onnx.load_from_string(self._graph).graph.input)

    def get_input(self, i: int):
        return SimpleNamespace(name=onnx.load_from_string(self._graph).graph.input[i].name)


class OnnxParser:
    def __init__(self, network, log) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network._graph = onnx.load(path).SerializeToString()
        return True


class Builder:
    def __init__(self, log) -> None:
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network, config) -> bytes:
        assert "TF32" not in config._flags
        return pickle.dumps((network._graph, config._profiles))


class Runtime:
    def __init__(self, log) -> None:
        pass

    def deserialize_cuda_engine(self, content: bytes):
        return ICudaEngine(*pickle.loads(content))


class ICudaEngine:
    streamable_weights_size = 0

    def __init__(self, graph: bytes, profiles) -> None:
        self._graph = graph
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        model, self._profiles = onnx.load_from_string(graph), profiles
        self._inputs = [i.name for i in model.graph.input]
        self._types = {t.name: _TYPES[t.type.tensor_type.elem_type] for t in (*model.graph.input, *model.graph.output)}
        self._names = list(self._types)

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def serialize(self) -> bytes:
        return pickle.dumps((self._graph, self._profiles))

    def get_tensor_name(self, i: int) -> str:
        return self._names[i]

    def get_tensor_mode(self, name: str) -> str:
        return TensorIOMode.INPUT if name in self._inputs else "TensorIOMode.OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{self._types[name]}"

    def get_tensor_profile_shape(self, name: str, i: int):
        return self._profiles[i][name]

    def create_execution_context(self, strategy):
        return IExecutionContext(self)


class Refitter:
    """`_lost` is what tests set: the how manieth exchange from now is said to be done, and is not."""

    _lost = 0

    def __init__(self, engine, log) -> None:
        self._engine, self._graph = engine, None

    def refit_cuda_engine(self) -> bool:
        Refitter._lost -= 1
        if Refitter._lost == 0:
            return True
        self._engine._graph = self._graph
        self._engine._session = onnxruntime.InferenceSession(self._graph, providers=["CPUExecutionProvider"])
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, log) -> None:
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        graph = onnx.load(path)
        ours = onnx.load_from_string(self._refitter._engine._graph)
        self._refitter._graph = graph.SerializeToString()
        return [n.op_type for n in graph.graph.node] == [n.op_type for n in ours.graph.node]


class IExecutionContext:
    def __init__(self, engine) -> None:
        self._engine, self._shapes, self._addresses = engine, {}, {}

    def set_input_shape(self, name, shape) -> bool:
        least, _, most = self._engine._profiles[0][name]
        self._shapes[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        types = self._engine._types
        zeros = {n: np.zeros(self._shapes[n], _NUMPY[types[n]]) for n in self._engine._inputs}
        outputs = [n for n in types if n not in zeros]
        made = self._engine._session.run(outputs, zeros)
        self._shapes |= {n: a.shape for n, a in zip(outputs, made, strict=True)}
        return []

    def get_tensor_shape(self, name):
        return self._shapes[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return 1

    def set_device_memory(self, address, size) -> None:
        pass

    def set_tensor_address(self, name, address) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream) -> bool:
        types = self._engine._types
        given = {n: self._view(n).copy() for n in self._engine._inputs}
        outputs = [n for n in types if n not in given]
        for name, made in zip(outputs, self._engine._session.run(outputs, given), strict=True):
            self._view(name)[...] = made
        return True

    def _view(self, name) -> np.ndarray:
        kind, shape = np.dtype(_NUMPY[self._engine._types[name]]), self._shapes[name]
        count = int(np.prod(shape))
        held = (ctypes.c_byte * (count * kind.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(held, dtype=kind).reshape(shape)
