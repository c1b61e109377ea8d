"""ONNX Runtime's CUDA backend: its buffers on the CPU provider of the real library, its graphs on a stand-in."""

import threading
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from calotype.backends import choose
from calotype.backends.onnxruntime import cuda as ort_cuda
from calotype.backends.onnxruntime.cuda import CUDA, OnnxRuntimeCudaRunner, Provider
from calotype.errors import BackendError, DeviceFullError
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent

HOST = Provider(name="CPUExecutionProvider", device="cpu")
X, Y = (Binding(name=n, dtype="float32", dims=("batch", 4)) for n in "xy")


@pytest.fixture(scope="module")
def component(tmp_path_factory) -> PlannedComponent:
    """y = 2 x."""
    folder = tmp_path_factory.mktemp("double")
    input_info, output_info = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", [input_info], [output_info])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "m.onnx")
    artifact = Artifact(form="onnx", path=folder / "m.onnx", precision="fp32", check={})
    return PlannedComponent(name="unet", inputs=(X,), outputs=(Y,), artifacts=(artifact,), refused={})


class Ort:
    """The real library with a CUDA provider that runs on the CPU. It records the options of sessions and runs."""

    def __init__(self, *, selected=None, refuses_graphs=False) -> None:
        self._selected, self._refuses = selected, refuses_graphs
        self.options, self.graphs, self.full, self.runs = [], [], False, 0
        self.SessionOptions = onnxruntime.SessionOptions

    @property
    def OrtValue(self):
        real = onnxruntime.OrtValue.ortvalue_from_numpy
        return SimpleNamespace(ortvalue_from_numpy=lambda array, device, i: real(array, "cpu", 0))

    def RunOptions(self):
        return SimpleNamespace(add_run_config_entry=lambda name, value: self.graphs.append((name, value)))

    def InferenceSession(self, path, options, providers):
        (name, settings), ort = providers[0], self
        self.options.append(settings)
        if self._refuses and settings.get("enable_cuda_graph"):
            raise RuntimeError("This session cannot use the graph capture feature: not all nodes are on CUDA\nmore")
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        class Session:
            def get_providers(self):
                return ort._selected or [name, "CPUExecutionProvider"]

            def io_binding(self):
                binding = real.io_binding()
                bind = binding.bind_output
                binding.bind_output = lambda output, device: bind(output, "cpu")
                return binding

            def run_with_iobinding(self, binding, run_options):
                if ort.full:
                    ort.full = False
                    raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory of size 9")
                ort.runs += 1
                real.run_with_iobinding(binding)

        return Session()


def numbers(count: int, start: float = 0.0) -> np.ndarray:
    return (np.arange(4 * count, dtype=np.float32) + start).reshape(count, 4)


def is_right(runner, count: int, start: float = 0.0) -> bool:
    return bool((runner({"x": numbers(count, start)})["y"] == 2 * numbers(count, start)).all())


def open_runner_with(component, ort, provider=CUDA):
    return OnnxRuntimeCudaRunner(component, component.artifacts[0], ort, provider)


def test_buffers_are_bound_once_for_each_size_and_refilled(component):
    runner = open_runner_with(component, onnxruntime, HOST)
    assert all(is_right(runner, n, s) for n, s in ((2, 0), (2, 5), (3, 1), (2, 9)))
    first = runner({"x": numbers(2, 1)})["y"]
    assert is_right(runner, 2, 7)
    assert (first == 2 * numbers(2, 1)).all()  # a copy for the caller
    assert len(runner._buffers) == 2
    assert all(is_right(runner, n) for n in range(1, 30))
    assert len(runner._buffers) == ort_cuda._MAX_SHAPES


def test_each_size_has_its_own_graph(component):
    ort = Ort()
    runner = open_runner_with(component, ort)
    assert ort.options == [{"use_tf32": "0", "enable_cuda_graph": "1"}]
    assert all(is_right(runner, n) for n in (2, 3, 2))
    graph_ids = [value for name, value in ort.graphs if name == "gpu_graph_id"]
    assert graph_ids == ["-1", "1", "-1", "2", "1"]  # the first run of a size determines its outputs' shapes
    assert runner.notes == ()


def test_nodes_on_the_cpu_disable_the_graph_with_a_note(component):
    ort = Ort(refuses_graphs=True)
    runner = open_runner_with(component, ort)
    assert [o.get("enable_cuda_graph") for o in ort.options] == ["1", None]
    assert is_right(runner, 2)
    assert ort.runs == 1  # no run before it
    assert all(is_right(runner, n, s) for n, s in ((2, 5), (3, 1), (2, 9)))
    assert ort.runs == 4
    assert ort.graphs == []
    assert "the unet runs without a CUDA graph on ONNX Runtime" in runner.notes[0]
    assert "not all nodes are on CUDA" in runner.notes[0]


def test_a_provider_that_falls_back_raises(component):
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        open_runner_with(component, Ort(selected=["CPUExecutionProvider"]))
    with pytest.raises(BackendError, match="ONNX Runtime"):
        open_runner_with(component, onnxruntime)  # the real library, which has no CUDA here


def test_an_onnx_runtime_without_a_cuda_provider_says_so(component):
    assert "has no CUDA provider (pip uninstall onnxruntime" in ort_cuda.unavailable()
    with pytest.raises(BackendError, match="provider"):
        choose("onnxruntime-cuda")


def test_a_full_device_raises_and_the_next_run_works(component):
    ort = Ort()
    runner = open_runner_with(component, ort)
    assert is_right(runner, 2)
    ort.full = True
    with pytest.raises(DeviceFullError, match="Failed to allocate"):
        runner({"x": numbers(3)})
    assert len(runner._buffers) == 0
    assert is_right(runner, 3)


def test_threads_may_share_it(component):
    runner, wrong = open_runner_with(component, onnxruntime, HOST), []

    def work(count: int) -> None:
        wrong.extend(count for start in range(20) if not is_right(runner, count, start))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
