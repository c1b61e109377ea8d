"""A TensorRT that works without a GPU: its engines are ONNX Runtime sessions, its device memory is the host's.

It has only the names that our code uses, and a test checks that TensorRT 11.4 has them too. An engine is the graph with
its profiles and flags. Like a real one, it refuses sizes outside of its profiles. `plugin` replaces `tensorrt.plugin`,
and our plugin's node computes.
"""

import ctypes
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__name__ = "tensorrt"  # as in the real library

_TYPES = {1: "FLOAT", 7: "INT64", 10: "HALF", 16: "BF16"}
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "HALF": np.float16}


_LEVELS = ("hardware_compatibility_level", "builder_optimization_level")


class ILogger:
    INTERNAL_ERROR, ERROR = "ILogger.INTERNAL_ERROR", "ILogger.ERROR"


class IProgressMonitor:
    pass


class HardwareCompatibilityLevel:
    AMPERE_PLUS = "AMPERE_PLUS"


class MemoryPoolType:
    WORKSPACE = "WORKSPACE"


class BuilderFlag:
    REFIT = "REFIT"
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

    def set_shape(self, name, low, optimum, high) -> None:
        self._ends[name] = (tuple(low), tuple(optimum), tuple(high))


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags, self._profiles, self._cache = {"TF32"}, [], None
        self.progress_monitor = None

    def set_flag(self, flag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool, size) -> None:
        self._flags.add(f"{pool} {size}")

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
        model = onnx.load(path)
        if any(node.domain == "calotype" for node in model.graph.node):
            model.functions.append(_plugins_function())
        self._network._graph = model.SerializeToString()
        return True


def _plugins_function() -> onnx.FunctionProto:
    """Return a function that computes the plugin's node."""
    norm = onnx.helper.make_node("GroupNormalization", ["x", "weight", "bias"], ["n"])
    for ours, theirs, kind in (("groups", "num_groups", "INT"), ("eps", "epsilon", "FLOAT")):
        attribute = {"name": theirs, "ref_attr_name": ours, "type": getattr(onnx.AttributeProto, kind)}
        norm.attribute.append(onnx.AttributeProto(**attribute))
    nodes = [norm, onnx.helper.make_node("Sigmoid", ["n"], ["s"]), onnx.helper.make_node("Mul", ["n", "s"], ["y"])]
    attributes = ["groups", "eps", "plugin_namespace", "plugin_version"]
    opsets = [onnx.helper.make_opsetid("", 21)]
    inputs = ["x", "weight", "bias"]
    return onnx.helper.make_function("calotype", "group_norm_silu", inputs, ["y"], nodes, opsets, attributes)


class plugin:
    """A fake `tensorrt.plugin`, which stores the registered functions."""

    __module__ = "tensorrt.plugin"

    class TensorDesc:
        def __init__(self, shape, dtype) -> None:
            self.shape, self.shape_expr, self.dtype = shape, shape, dtype

        def like(self):
            return self

    class AutoTuneCombination:
        def __init__(self, io_types, layouts) -> None:
            self.pairs = list(zip(io_types.split(", "), layouts.split(", "), strict=True))

    KernelLaunchParams = SimpleNamespace
    SymInt32 = int

    def __init__(self) -> None:
        self.registered = {}

    def SymIntExprs(self, count):
        return [None] * count

    def __getattr__(self, name):
        assert name in ("register", "autotune", "aot_impl")
        return lambda plugin: lambda function: self.registered.setdefault((name, plugin), function)


class Builder:
    def __init__(self, log) -> None:
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network, config) -> bytes | None:
        assert "TF32" not in config._flags
        if config.progress_monitor is not None and not self._report_progress(config.progress_monitor):
            return None
        levels = {f"{n} {vars(config)[n]}" for n in _LEVELS if n in vars(config)}
        return pickle.dumps((network._graph, config._profiles, sorted(config._flags | levels)))

    def _report_progress(self, monitor) -> bool:
        monitor.phase_start("Building", None, 2)
        continues = all(monitor.step_complete("Building", i) for i in range(2))
        monitor.phase_finish("Building")
        return continues


class Runtime:
    def __init__(self, log) -> None:
        pass

    def deserialize_cuda_engine(self, content: bytes):
        return ICudaEngine(*pickle.loads(content))


class ICudaEngine:
    streamable_weights_size = 0

    def __init__(self, graph: bytes, profiles, flags) -> None:
        self._graph, self._flags = graph, flags
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
        return pickle.dumps((self._graph, self._profiles, self._flags))

    @property
    def refittable(self) -> bool:
        return "REFIT" in self._flags

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
    """Tests set `_lost`: the number of the next refit, from 1, that reports success but changes nothing."""

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

    def load_model_proto(self, model: bytes, path: str) -> bool:
        self._model, self._folder = onnx.load_from_string(model), Path(path).parent
        return True

    def load_initializer(self, name: str, address: int, size: int) -> bool:
        tensor = next((t for t in self._model.graph.initializer if t.name == name), None)
        if tensor is None:
            return False
        expected = int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = ctypes.string_at(address, size)
        return expected == size

    def refit_model_proto(self) -> bool:
        onnx.load_external_data_for_model(self._model, str(self._folder))
        ours = onnx.load_from_string(self._refitter._engine._graph)
        self._refitter._graph = self._model.SerializeToString()
        return [n.op_type for n in self._model.graph.node] == [n.op_type for n in ours.graph.node]


class IExecutionContext:
    def __init__(self, engine) -> None:
        self._engine, self._shapes, self._addresses, self._profile = engine, {}, {}, 0

    def set_optimization_profile_async(self, profile, stream) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name, shape) -> bool:
        low, _, high = self._engine._profiles[self._profile][name]
        self._shapes[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        types = self._engine._types
        zeros = {n: np.zeros(self._shapes[n], _NUMPY[types[n]]) for n in self._engine._inputs}
        outputs = [n for n in types if n not in zeros]
        arrays = self._engine._session.run(outputs, zeros)
        self._shapes |= {n: a.shape for n, a in zip(outputs, arrays, strict=True)}
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
        inputs = {n: self._view(n).copy() for n in self._engine._inputs}
        outputs = [n for n in types if n not in inputs]
        for name, array in zip(outputs, self._engine._session.run(outputs, inputs), strict=True):
            self._view(name)[...] = array
        return True

    def _view(self, name) -> np.ndarray:
        kind, shape = np.dtype(_NUMPY[self._engine._types[name]]), self._shapes[name]
        count = int(np.prod(shape))
        content = (ctypes.c_byte * (count * kind.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(content, dtype=kind).reshape(shape)
