"""ONNX Runtime's CUDA backend: its buffers on the CPU provider of the real library, its graphs on a stand-in."""

import threading
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

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
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", [given], [made])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "m.onnx")
    artifact = Artifact(form="onnx", path=folder / "m.onnx", precision="fp32", check={})
    return PlannedComponent(name="unet", inputs=(X,), outputs=(Y,), artifacts=(artifact,), refused={})


class Ort:
    """The real library, with a CUDA provider that is the CPU's, and what sessions and runs were told."""

    def __init__(self, *, took=None, refuses_graphs=False) -> None:
        self._took, self._refuses = took, refuses_graphs
        self.options, self.graphs, self.full, self.runs = [], [], False, 0
        self.SessionOptions = onnxruntime.SessionOptions

    @property
    def OrtValue(self):
        real = onnxruntime.OrtValue.ortvalue_from_numpy
        return SimpleNamespace(ortvalue_from_numpy=lambda array, device, i: real(array, "cpu", 0))

    def RunOptions(self):
        return SimpleNamespace(add_run_config_entry=lambda name, value: self.graphs.append((name, value)))

    def InferenceSession(self, path, options, providers):
        (name, told), ort = providers[0], self
        self.options.append(told)
        if self._refuses and told.get("enable_cuda_graph"):
            raise RuntimeError("This session cannot use the graph capture feature: not all nodes are on CUDA\nmore")
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        class Session:
            def get_providers(self):
                return ort._took or [name, "CPUExecutionProvider"]

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


def right(runner, count: int, start: float = 0.0) -> bool:
    return bool((runner({"x": numbers(count, start)})["y"] == 2 * numbers(count, start)).all())


def opened(component, ort, provider=CUDA):
    return OnnxRuntimeCudaRunner(component, component.artifacts[0], ort, provider)


def test_buffers_are_bound_once_for_each_size_and_filled_anew(component):
    runner = opened(component, onnxruntime, HOST)
    assert all(right(runner, n, s) for n, s in ((2, 0), (2, 5), (3, 1), (2, 9)))
    first = runner({"x": numbers(2, 1)})["y"]
    assert right(runner, 2, 7)
    assert (first == 2 * numbers(2, 1)).all()  # the caller's own
    assert len(runner._kept) == 2
    assert all(right(runner, n) for n in range(1, 30))
    assert len(runner._kept) == ort_cuda._KEPT


def test_each_size_has_a_graph_of_its_own(component):
    ort = Ort()
    runner = opened(component, ort)
    assert ort.options == [{"use_tf32": "0", "enable_cuda_graph": "1"}]
    assert all(right(runner, n) for n in (2, 3, 2))
    numbered = [value for name, value in ort.graphs if name == "gpu_graph_id"]
    assert numbered == ["-1", "1", "-1", "2", "1"]  # the first run of a size tells its outputs' shapes
    assert runner.notes == ()


def test_without_a_graph_where_nodes_stay_on_the_cpu_and_says_so(component):
    ort = Ort(refuses_graphs=True)
    runner = opened(component, ort)
    assert [o.get("enable_cuda_graph") for o in ort.options] == ["1", None]
    assert right(runner, 2)
    assert ort.runs == 1  # nothing has to be known before
    assert all(right(runner, n, s) for n, s in ((2, 5), (3, 1), (2, 9)))
    assert ort.runs == 4
    assert ort.graphs == []
    assert "the unet runs without a CUDA graph on ONNX Runtime" in runner.notes[0]
    assert "not all nodes are on CUDA" in runner.notes[0]


def test_a_provider_that_fell_back_is_our_error(component):
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider and took CPUExecutionProvider"):
        opened(component, Ort(took=["CPUExecutionProvider"]))
    with pytest.raises(BackendError, match=r"asked for|cannot open"):
        opened(component, onnxruntime)  # the real library, which has no CUDA here


def test_this_onnx_runtime_says_that_it_has_no_cuda_provider(component):
    assert "has no CUDA provider (pip uninstall onnxruntime" in ort_cuda.unavailable()
    with pytest.raises(BackendError, match="has no CUDA provider"):
        ort_cuda.open_runner(component, component.artifacts[0])


def test_a_full_device_is_our_error_and_the_next_run_works(component):
    ort = Ort()
    runner = opened(component, ort)
    assert right(runner, 2)
    ort.full = True
    with pytest.raises(DeviceFullError, match=r"no room for a run of this size \(BFCArena.* Failed to allocate"):
        runner({"x": numbers(3)})
    assert len(runner._kept) == 0
    assert right(runner, 3)


def test_threads_may_share_it(component):
    runner, wrong = opened(component, onnxruntime, HOST), []

    def work(count: int) -> None:
        wrong.extend(count for start in range(20) if not right(runner, count, start))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
