"""A fake `tensorrt`: it records calls, returns what a test sets, and has only the real library's names.

Every attribute that the code uses must be in `names.txt`, which lists the names of TensorRT 11.4's bindings. Any other
name fails the test, even if our code catches the error.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from calotype.backends import compatibility, registry
from calotype.backends.tensorrt import runner as tensorrt_runner
from calotype.backends.torch import cuda
from calotype.cuda.fused import fuse as fused
from calotype.export.builder import build as build_module
from calotype.export.steps import subprocess_task, versions
from calotype.export.steps.subprocess_task import Outcome, run_in_subprocess
from calotype.export.tensorrt import engines
from calotype.files.digest import file_digest
from calotype.graph import pipeline as graph_pipeline
from calotype.graph import runner as graph_runner
from calotype.kernels import guided_step, to_uint8
from tests.helpers import gpu_standins, tensorrt_standin

NAMES = frozenset((Path(__file__).parent / "names.txt").read_text().splitlines()[1:])
# The kind of object that a method returns, unless a test sets its result.
RETURNS = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_execution_context": "IExecutionContext",
}


class FakeObject:
    """An object of the library: it records method calls; a property is what was set, or what the test sets."""

    def __init__(self, fake: "FakeTrt", kind: str) -> None:
        self.__dict__.update(_fake=fake, _kind=kind)

    def __getattr__(self, name: str):
        fake, what = self._fake, f"{self._kind}.{name}"
        fake.check(what)
        answer = fake.answers.get(what)
        if answer is not None and not callable(answer):
            return answer

        def method(*args):
            fake.calls.append((what, *args))
            if callable(answer):
                return answer(*args)
            return FakeObject(fake, RETURNS[what]) if what in RETURNS else True

        return method

    def __setattr__(self, name: str, value) -> None:
        self._fake.check(f"{self._kind}.{name}")
        self._fake.calls.append((f"{self._kind}.{name} =", value))
        self.__dict__[name] = value


class Enumeration:
    """An enumeration whose members are their names."""

    def __init__(self, fake: "FakeTrt", kind: str) -> None:
        self._fake, self._kind = fake, kind

    def __getattr__(self, name: str) -> str:
        self._fake.check(f"{self._kind}.{name}")
        return f"{self._kind}.{name}"


class FakeTrt:
    """The module. `answers` maps "Kind.member" to a value, or to a function of the arguments."""

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

    def log_error(self, text: str) -> None:
        """Write an error into the log."""
        self.logs[-1].log("ILogger.ERROR", text)

    def __getattr__(self, name: str):
        self.check(name)
        if name in ("Builder", "Runtime", "OnnxParser"):
            return lambda *args: self._create(name, *args)
        if name in ("ILogger", "IProgressMonitor"):
            return self._base(name)
        return Enumeration(self, name)

    def _create(self, kind: str, *args) -> FakeObject:
        self.calls.append((kind, *args))
        return FakeObject(self, kind)

    def _base(self, kind: str) -> type:
        fake = self

        class Base:
            INTERNAL_ERROR, ERROR = "ILogger.INTERNAL_ERROR", "ILogger.ERROR"

            def __init__(self) -> None:
                if kind == "ILogger":
                    fake.logs.append(self)

        return Base


@pytest.fixture
def fake():
    fake = FakeTrt()
    yield fake
    assert fake.unknown == [], "names that TensorRT 11.4 does not have"


@pytest.fixture
def gpu():
    return gpu_standins.Host()


# Tasks that need the device. All others run in child processes, as tracing would look for a real GPU.
ON_THE_DEVICE = (
    *("check:check_planned", "evaluate:evaluate_plan", "evaluate:compare_speed"),
    *("engines:build_here", "refit:refit_here"),
)
GPU_NAME = "NVIDIA STAND-IN, driver 1"


def run_here(task, function, on_progress=None, /, **arguments):
    """Run a task in this process, which has the stand-ins."""
    module, name = function.split(":")
    if not function.endswith(ON_THE_DEVICE):
        return run_in_subprocess(task, function, on_progress, **arguments)
    subprocess_task._send = on_progress
    value = getattr(importlib.import_module(module), name)(**arguments)
    return Outcome(value=value, peak_bytes=0)


@pytest.fixture
def on_a_gpu(gpu, monkeypatch):
    """A machine that seems to have a GPU and TensorRT. Yields the fake `tensorrt.plugin`."""
    real_spec, real_import = importlib.util.find_spec, importlib.import_module
    modules = {"tensorrt": tensorrt_standin, "tensorrt.plugin": tensorrt_standin.plugin()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: real_spec("onnx") if n == "tensorrt" else real_spec(n, *a)
    )
    monkeypatch.setattr(
        importlib, "import_module", lambda n, *a, **k: modules[n] if n in modules else real_import(n, *a, **k)
    )
    monkeypatch.setattr(registry, "has_gpu", lambda: True)
    for module in (compatibility, engines):
        monkeypatch.setattr(module, "installed", lambda name: "11.4.0")
    monkeypatch.setattr(versions, "installed_backend", lambda name: "11.4.0")
    # Another stand-in builds other engines.
    monkeypatch.setattr(engines, "ENGINES", file_digest(Path(tensorrt_standin.__file__)))
    for module in (compatibility, engines, build_module):
        monkeypatch.setattr(module, "gpu_name", lambda: GPU_NAME)
    for module in (cuda, tensorrt_runner, graph_runner):
        monkeypatch.setattr(module, "Gpu", lambda: gpu)
    for module in (cuda, graph_runner):
        monkeypatch.setattr(module, "CudaGraphCapturer", gpu_standins.Calls)
    monkeypatch.setattr(fused, "fuse", lambda module: None)
    monkeypatch.setattr(graph_pipeline, "guided_step", lambda n, s, rescaled: guided_step.reference(n, s))
    monkeypatch.setattr(graph_pipeline, "to_uint8", to_uint8.reference)
    for name in [n for n in sys.modules if n.startswith("calotype.export.")]:
        if hasattr(sys.modules[name], "run_in_subprocess"):
            monkeypatch.setattr(sys.modules[name], "run_in_subprocess", run_here)
    yield modules["tensorrt.plugin"]
    subprocess_task._send = None
