"""TensorRT itself, where there is a GPU and it is installed: an engine is built, run at its sizes, and captured."""

import importlib
import importlib.util

import numpy as np
import pytest
import torch

from calotype.backends.device import Gpu
from calotype.bindings import Binding
from calotype.errors import BackendError
from calotype.graphs import CudaRecorder, Graphs
from calotype.plan import Artefact, PlannedComponent

there = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
pytestmark = pytest.mark.skipif(not there, reason="this needs a GPU and tensorrt")
SHAPES = {"x": ((1, 4, 8, 8), (2, 4, 16, 16), (4, 4, 32, 32))}
WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 3, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """y = relu(conv(x)), built here."""
    import onnx
    from onnx import helper

    from calotype.export.tensorrt import build_engine

    folder = tmp_path_factory.mktemp("engine")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", 4, "h", "w"]) for n in "xy")
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(WEIGHT, "weight")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "g.onnx")
    trt = importlib.import_module("tensorrt")
    (folder / "g.engine").write_bytes(build_engine(trt, folder / "g.onnx", [SHAPES]).engine)
    return folder / "g.engine"


@pytest.fixture
def runner(engine):
    from calotype.backends.trt import TrtRunner

    x, y = (Binding(name=n, dtype="float32", dims=("batch", 4, "height", "width")) for n in "xy")
    artefact = Artefact(form="tensorrt", path=engine, precision="fp32", check={})
    component = PlannedComponent(name="unet", inputs=(x,), outputs=(y,), artefacts=(artefact,), refused={})
    return TrtRunner(component, artefact, importlib.import_module("tensorrt"), Gpu())


def given(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((batch, 4, side, side), dtype=np.float32)


def wanted(x: np.ndarray) -> np.ndarray:
    return torch.conv2d(torch.from_numpy(x), torch.from_numpy(WEIGHT), padding=1).relu().numpy()


def test_it_runs_at_every_size_that_it_was_built_for_and_at_no_other(runner):
    for batch, side in ((1, 8), (4, 32), (2, 16), (1, 8)):
        x = given(batch, side)
        np.testing.assert_allclose(runner({"x": x})["y"], wanted(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(BackendError, match="was built for"):
        runner({"x": given(5, 8)})


def test_it_is_captured_with_what_is_around_it(runner):
    graph = Graphs(lambda i: {"y": runner.run({"x": i["x"] * 2})["y"] + 1}, CudaRecorder(), limit_bytes=2**30)
    for side in (8, 16, 8):
        x = given(2, side)
        got = graph({"x": torch.from_numpy(x).cuda()})["y"].cpu().numpy()
        np.testing.assert_allclose(got, wanted(2 * x) + 1, rtol=1e-2, atol=1e-2)
