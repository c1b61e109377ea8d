"""The tensorrt backend with a fake TensorRT: opening, running at several sizes, and failing."""

import ctypes
import importlib
import threading

import numpy as np
import pytest
import torch

from calotype import backends
from calotype.backends.tensorrt import runner as backend
from calotype.backends.tensorrt.runner import TensorRtRunner
from calotype.errors import BackendError, DeviceFullError
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent
from tests.helpers.backends import change_backend

X = Binding(name="x", dtype="float32", dims=("batch", 4))
Y = Binding(name="y", dtype="float32", dims=("batch", 4))


@pytest.fixture
def component(tmp_path) -> PlannedComponent:
    (tmp_path / "model.engine").write_bytes(b"engine")
    artifact = Artifact(form="tensorrt", path=tmp_path / "model.engine", precision="fp16", check={})
    return PlannedComponent(name="unet", inputs=(X,), outputs=(Y,), artifacts=(artifact,), refused={})


def double(addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compute y = 2 x in float32 at these addresses, as the fake engine."""
    count = int(np.prod(shapes["x"]))
    x, y = ((ctypes.c_float * count).from_address(addresses[n]) for n in "xy")
    for i in range(count):
        y[i] = 2 * x[i]


def set_up_engine(fake, *profiles: tuple[int, int, int], **answers) -> None:
    """Set up an engine x [n, 4] -> y [n, 4] with these profiles of n; a run needs 100 n bytes."""
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


def open_runner(component, fake, gpu) -> TensorRtRunner:
    return TensorRtRunner(component, component.artifacts[0], fake, gpu)


def numbers(count: int) -> np.ndarray:
    return np.arange(4 * count, dtype=np.float32).reshape(count, 4)


def test_the_engine_opens_without_its_own_working_memory(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    assert open_runner(component, fake, gpu).precision == "fp16"
    assert fake.called("Runtime.deserialize_cuda_engine") == [(b"engine",)]
    strategy = "ExecutionContextAllocationStrategy.USER_MANAGED"
    assert fake.called("ICudaEngine.create_execution_context") == [(strategy,)]


def test_arrays_run_on_the_side_stream(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    assert (open_runner(component, fake, gpu)({"x": numbers(3)})["y"] == 2 * numbers(3)).all()
    assert fake.called("IExecutionContext.execute_async_v3") == [(11,)]


def test_tensors_run_on_the_current_stream(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    x = torch.ones(2, 4)
    y = open_runner(component, fake, gpu).run({"x": x})["y"]
    assert (y == 2).all()
    assert fake.called("IExecutionContext.execute_async_v3") == [(7,)]
    assert dict(fake.called("IExecutionContext.set_tensor_address")) == {"x": x.data_ptr(), "y": y.data_ptr()}


def test_sizes_are_set_when_they_change_and_memory_when_it_grows(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    runner = open_runner(component, fake, gpu)
    for count in (2, 2, 8, 1):
        assert (runner({"x": numbers(count)})["y"] == 2 * numbers(count)).all()
    assert fake.called("IExecutionContext.set_input_shape") == [("x", (n, 4)) for n in (2, 8, 1)]
    memory = fake.called("IExecutionContext.set_device_memory")
    assert [size for _, size in memory] == [200, 800, 800]  # one buffer, which does not shrink
    assert memory[1] == memory[2]


def test_runners_share_working_memory_on_a_stream_and_not_across_streams(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    one, two = (open_runner(component, fake, gpu) for _ in range(2))
    one({"x": numbers(2)})
    two({"x": numbers(8)})
    one({"x": numbers(2)})  # the buffer has changed: the context needs the new address
    places = fake.called("IExecutionContext.set_device_memory")
    assert [size for _, size in places] == [200, 800, 800]
    assert places[1] == places[2]
    one.run({"x": torch.ones(2, 4)})  # on the current stream
    assert fake.called("IExecutionContext.set_device_memory")[3][1] == 200
    assert set(gpu.arenas) == {7, 11}


def test_a_captured_run_has_its_own_working_memory(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    runner, gpu.captures = open_runner(component, fake, gpu), True
    captured = runner.run({"x": torch.ones(2, 4)})["y"]
    assert gpu.arenas == {}
    gpu.captures = False
    assert (runner.run({"x": torch.ones(2, 4)})["y"] == captured).all()
    (_, graphs), (place, shared) = fake.called("IExecutionContext.set_device_memory")
    assert (graphs, shared) == (200, 200)
    assert place == gpu.arenas[7].at_least(1).data_ptr()


def test_the_first_profile_that_fits_is_used(fake, component, gpu):
    set_up_engine(fake, (2, 2, 2), (1, 4, 8), (1, 4, 64))
    runner = open_runner(component, fake, gpu)
    for count in (2, 8, 2, 64, 8):
        runner({"x": numbers(count)})
    assert fake.called("IExecutionContext.set_optimization_profile_async") == [(n, 11) for n in (1, 0, 2, 1)]


def test_other_sizes_are_refused_with_the_supported_ones(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8), (16, 16, 16))
    runner = open_runner(component, fake, gpu)
    with pytest.raises(BackendError, match=r"to \[8, 4\]; or x \[16, 4\]"):
        runner({"x": numbers(9)})
    assert (runner({"x": numbers(2)})["y"] == 2 * numbers(2)).all()  # and it still works


def test_other_types_and_layouts_are_refused(fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    runner = open_runner(component, fake, gpu)
    with pytest.raises(BackendError, match="float16"):
        runner.run({"x": torch.ones(2, 4).half()})
    with pytest.raises(BackendError, match="contiguous"):
        runner.run({"x": torch.ones(4, 2).T})


@pytest.mark.parametrize(
    ("answer", "keyword"),
    [
        ({"Runtime.deserialize_cuda_engine": lambda content: None}, "cannot open .*: why"),
        ({"ICudaEngine.create_execution_context": lambda strategy: None}, "context .*: why"),
        ({"ICudaEngine.num_io_tensors": 1}, r"outputs \[\]"),
    ],
    ids=["of another version", "no context", "other tensors"],
)
def test_an_engine_that_does_not_open_raises(answer, keyword, fake, component, gpu):
    set_up_engine(fake, (1, 2, 8), **answer)
    for what, args in answer.items():
        if callable(args):
            fake.answers[what] = lambda *args: fake.log_error("why")
    with pytest.raises(BackendError, match=keyword):
        open_runner(component, fake, gpu)


@pytest.mark.parametrize("name", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_failed_run_raises_and_the_next_one_works(name, fake, component, gpu):
    set_up_engine(fake, (1, 2, 8))
    runner = open_runner(component, fake, gpu)
    works = fake.answers[f"IExecutionContext.{name}"]
    fake.answers[f"IExecutionContext.{name}"] = lambda *args: bool(fake.log_error("out of memory"))
    with pytest.raises(BackendError, match="out of memory"):
        runner({"x": numbers(2)})
    fake.answers[f"IExecutionContext.{name}"] = works
    assert (runner({"x": numbers(2)})["y"] == 2 * numbers(2)).all()


def test_a_full_device_raises_device_full_everywhere(fake, component, gpu, monkeypatch):
    set_up_engine(fake, (1, 2, 8))
    fake.answers["Runtime.deserialize_cuda_engine"] = lambda content: fake.log_error("CUDA error 2: out of memory")
    with pytest.raises(DeviceFullError, match="weight-streaming"):
        open_runner(component, fake, gpu)
    del fake.answers["Runtime.deserialize_cuda_engine"]
    runner, real = open_runner(component, fake, gpu), gpu.empty

    def full(shape, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(gpu, "empty", full)  # of outputs, and of the working memory
    with pytest.raises(DeviceFullError, match="CUDA out of memory"):
        runner({"x": numbers(2)})
    monkeypatch.setattr(gpu, "empty", real)
    assert (runner({"x": numbers(2)})["y"] == 2 * numbers(2)).all()


def test_weights_may_stay_in_host_memory_if_the_engine_allows_it(fake, component, gpu):
    budget = {"ICudaEngine.get_weight_streaming_automatic_budget": lambda: 123}
    set_up_engine(fake, (1, 2, 8), **{"ICudaEngine.streamable_weights_size": 999}, **budget)
    open_runner(component, fake, gpu)
    names = [call[0] for call in fake.calls]
    assert ("ICudaEngine.weight_streaming_budget_v2 =", 123) in fake.calls
    assert names.index("ICudaEngine.weight_streaming_budget_v2 =") < names.index("ICudaEngine.create_execution_context")


def test_threads_may_share_it(fake, component, gpu):
    set_up_engine(fake, (1, 2, 64))
    runner = open_runner(component, fake, gpu)
    wrong = []

    def work(count):
        for _ in range(10):
            out = runner.run({"x": torch.full((count, 4), float(count))})["y"]
            wrong.extend([count] if out.shape != (count, 4) or (out != 2 * count).any() else [])

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_a_gpu_tensorrt_is_not_imported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: pytest.fail(name) if name.startswith("tensorrt") else real(name)
    )
    assert "no NVIDIA GPU" in backend.BACKEND.unavailable()
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        backends.choose("tensorrt")


def test_a_plan_opens_it_by_name(component, fake, gpu, monkeypatch):
    set_up_engine(fake, (1, 2, 8))
    change_backend(monkeypatch, "tensorrt", unavailable=lambda: None)
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: fake if name == "tensorrt" else real(name))
    monkeypatch.setattr(backend, "Gpu", lambda: gpu)
    opened = backends.open_component(component, backends.choose("tensorrt"))
    assert opened.why == "requested"
    assert (opened(x=numbers(2))["y"] == 2 * numbers(2)).all()
    with pytest.raises(BackendError, match="built for"):
        opened(x=numbers(9))
