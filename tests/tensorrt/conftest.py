"""A `tensorrt` that is not there: it records what is called, answers what a test says, and knows the real one's names.

Every attribute that is asked for must be among `names.txt`, which was read from the bindings of TensorRT 11.4; one that
is not fails the test, even where our code would have made an error of it.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.backends.device import Arena

NAMES = frozenset((Path(__file__).parent / "names.txt").read_text().splitlines()[1:])
# What a method makes, where a test does not say.
MADE = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_execution_context": "IExecutionContext",
}


class Thing:
    """An object of the library: methods are recorded, properties are what was set or what the test answers."""

    def __init__(self, fake: "FakeTrt", kind: str) -> None:
        self.__dict__.update(_fake=fake, _kind=kind)

    def __getattr__(self, name: str):
        fake, what = self._fake, f"{self._kind}.{name}"
        fake.check(what)
        answer = fake.answers.get(what)
        if answer is not None and not callable(answer):
            return answer

        def method(*given):
            fake.calls.append((what, *given))
            if callable(answer):
                return answer(*given)
            return Thing(fake, MADE[what]) if what in MADE else True

        return method

    def __setattr__(self, name: str, value) -> None:
        self._fake.check(f"{self._kind}.{name}")
        self._fake.calls.append((f"{self._kind}.{name} =", value))
        self.__dict__[name] = value


class Words:
    """An enumeration: its members are their own names."""

    def __init__(self, fake: "FakeTrt", kind: str) -> None:
        self._fake, self._kind = fake, kind

    def __getattr__(self, name: str) -> str:
        self._fake.check(f"{self._kind}.{name}")
        return f"{self._kind}.{name}"


class FakeTrt:
    """The module. `answers` is "Kind.member" -> a value, or a function of the arguments."""

    def __init__(self) -> None:
        self.__name__ = "tensorrt"
        self.calls: list[tuple] = []
        self.answers: dict[str, object] = {}
        self.unknown: list[str] = []
        self.logs: list = []

    def check(self, name: str) -> None:
        if name not in NAMES and not name.rpartition(".")[2].startswith("__"):
            self.unknown.append(name)
            raise AttributeError(name)

    def called(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == name]

    def say(self, text: str) -> None:
        """An error in the log."""
        self.logs[-1].log("ILogger.ERROR", text)

    def __getattr__(self, name: str):
        self.check(name)
        if name in ("Builder", "Runtime", "OnnxParser"):
            return lambda *given: self._made(name, *given)
        if name in ("ILogger", "IProgressMonitor"):
            return self._base(name)
        return Words(self, name)

    def _made(self, kind: str, *given) -> Thing:
        self.calls.append((kind, *given))
        return Thing(self, kind)

    def _base(self, kind: str) -> type:
        fake = self

        class Base:
            INTERNAL_ERROR, ERROR = "ILogger.INTERNAL_ERROR", "ILogger.ERROR"

            def __init__(self) -> None:
                if kind == "ILogger":
                    fake.logs.append(self)

        return Base


class CpuGpu:
    """Stands in for `Gpu`: torch's memory of the CPU, and streams that are numbers."""

    def __init__(self) -> None:
        self.stream, self.side, self.captures = 7, 11, False
        self.arenas: dict[int, Arena] = {}

    def current_stream(self) -> int:
        return self.stream

    def named(self, name: str):
        return nullcontext()

    def hold(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def total_bytes(self) -> int:
        return 2**34

    def capturing(self) -> bool:
        return self.captures

    @contextmanager
    def side_stream(self):
        self.stream, before = self.side, self.stream
        yield
        self.stream = before

    def arena(self, stream: int) -> Arena:
        return self.arenas.setdefault(stream, Arena(lambda size: self.empty((size,), "uint8")))

    def empty(self, shape, dtype: str) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype))

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def fetch(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.numpy()


@pytest.fixture
def fake():
    made = FakeTrt()
    yield made
    assert made.unknown == [], "names that TensorRT 11.4 does not have"


@pytest.fixture(scope="session")
def standin():
    """A TensorRT that computes, see standin.py."""
    place = importlib.util.spec_from_file_location("standin", Path(__file__).with_name("standin.py"))
    module = importlib.util.module_from_spec(place)
    sys.modules["standin"] = module  # where engines are pickled
    place.loader.exec_module(module)
    yield module
    del sys.modules["standin"]


@pytest.fixture
def gpu() -> CpuGpu:
    return CpuGpu()


def double(addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """What the fake engine computes: y = 2 x, in float32, at the addresses it was given."""
    count = int(np.prod(shapes["x"]))
    x, y = ((ctypes.c_float * count).from_address(addresses[n]) for n in "xy")
    for i in range(count):
        y[i] = 2 * x[i]


@pytest.fixture
def engine(fake) -> Callable[..., FakeTrt]:
    """Give the fake an engine x [n, 4] -> y [n, 4] with these profiles of n, which needs 100 n bytes to run."""

    def of(*profiles: tuple[int, int, int], **answers) -> FakeTrt:
        shapes, addresses = {}, {}
        fake.answers |= {
            "ICudaEngine.num_io_tensors": 2,
            "ICudaEngine.get_tensor_name": lambda i: "xy"[i],
            "ICudaEngine.get_tensor_mode": lambda n: f"TensorIOMode.{'INPUT' if n == 'x' else 'OUTPUT'}",
            "ICudaEngine.get_tensor_dtype": lambda n: "DataType.FLOAT",
            "ICudaEngine.num_optimization_profiles": len(profiles),
            "ICudaEngine.get_tensor_profile_shape": lambda n, i: [(size, 4) for size in profiles[i]],
            "ICudaEngine.streamable_weights_size": 0,
            "IExecutionContext.set_input_shape": lambda n, shape: bool(shapes.update({n: shape}) or True),
            "IExecutionContext.infer_shapes": lambda: [],
            "IExecutionContext.get_tensor_shape": lambda n: shapes["x"],
            "IExecutionContext.update_device_memory_size_for_shapes": lambda: 100 * shapes["x"][0],
            "IExecutionContext.set_tensor_address": lambda n, where: bool(addresses.update({n: where}) or True),
            "IExecutionContext.execute_async_v3": lambda stream: double(addresses, shapes) or True,
            **answers,
        }
        return fake

    return of
