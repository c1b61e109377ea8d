"""TensorRT itself, where there is a GPU and it is installed: an engine is built, run at its sizes, and captured."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.cuda.graphs import CudaGraphCache, CudaGraphCapturer
from calotype.errors import BackendError
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent

there = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
pytestmark = pytest.mark.skipif(not there, reason="this needs a GPU and tensorrt")
SHAPES = {"x": ((1, 4, 8, 8), (2, 4, 16, 16), (4, 4, 32, 32))}
WEIGHT = np.random.default_rng(0).standard_normal((4, 4, 3, 3), dtype=np.float32)


def graph_of(weight: np.ndarray, folder: Path) -> Path:
    """y = relu(conv(x))."""
    import onnx
    from onnx import helper

    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", 4, "h", "w"]) for n in "xy")
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


def built(weight: np.ndarray, folder: Path, **options) -> Path:
    from calotype.export.tensorrt.builder import build_engine
    from calotype.export.tensorrt.options import EngineOptions

    trt = importlib.import_module("tensorrt")
    made = build_engine(trt, graph_of(weight, folder), [SHAPES], EngineOptions(**options))
    (folder / "g.engine").write_bytes(made.engine)
    return folder / "g.engine"


def opened(engine: Path):
    from calotype.backends.tensorrt.runner import opened_with

    x, y = (Binding(name=n, dtype="float32", dims=("batch", 4, "height", "width")) for n in "xy")
    artifact = Artifact(form="tensorrt", path=engine, precision="fp32", check={})
    component = PlannedComponent(name="unet", inputs=(x,), outputs=(y,), artifacts=(artifact,), refused={})
    return opened_with("tensorrt", component, artifact)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return built(WEIGHT, tmp_path_factory.mktemp("engine"))


@pytest.fixture
def runner(engine):
    return opened(engine)


def given(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((batch, 4, side, side), dtype=np.float32)


def wanted(x: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    return torch.conv2d(torch.from_numpy(x), torch.from_numpy(weight), padding=1).relu().numpy()


def test_it_runs_at_every_size_that_it_was_built_for_and_at_no_other(runner):
    for batch, side in ((1, 8), (4, 32), (2, 16), (1, 8)):
        x = given(batch, side)
        np.testing.assert_allclose(runner({"x": x})["y"], wanted(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(BackendError, match="was built for"):
        runner({"x": given(5, 8)})


def test_it_is_captured_with_what_is_around_it(runner):
    graph = CudaGraphCache(
        lambda i: {"y": runner.run({"x": i["x"] * 2})["y"] + 1}, CudaGraphCapturer(), limit_bytes=2**30
    )
    for side in (8, 16, 8):
        x = given(2, side)
        got = graph({"x": torch.from_numpy(x).cuda()})["y"].cpu().numpy()
        np.testing.assert_allclose(got, wanted(2 * x) + 1, rtol=1e-2, atol=1e-2)


def test_weights_are_exchanged_and_an_engine_that_keeps_a_trace_is_refused(tmp_path):
    from calotype.backends.tensorrt.refit import exchanged

    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    other, x = WEIGHT[::-1].copy(), given(2, 16)
    runner = opened(built(WEIGHT, tmp_path / "ours", refit=True))
    graphs = {"ours": tmp_path / "ours" / "g.onnx", "theirs": graph_of(other, tmp_path / "theirs")}
    try:
        made = exchanged(runner, **graphs, probe={"x": x})
    except BackendError as told:  # the residue that NVIDIA/TensorRT 3628 tells of: it is built anew then
        if "is not what it was" not in str(told):
            raise
        pytest.xfail(str(told))
    (tmp_path / "theirs" / "g.engine").write_bytes(made)
    got = opened(tmp_path / "theirs" / "g.engine")({"x": x})["y"]
    np.testing.assert_allclose(got, wanted(x, other), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(runner({"x": x})["y"], wanted(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "options", [{"weight_streaming": True}, {"version_compatible": True}, {"hardware": "ampere-plus"}], ids=str
)
def test_engines_of_every_option_compute_the_same(options, tmp_path):
    x = given(2, 16)
    got = opened(built(WEIGHT, tmp_path, **options))({"x": x})["y"]
    np.testing.assert_allclose(got, wanted(x), rtol=1e-2, atol=1e-2)


def test_the_demonstration_model_is_painted_by_engines_as_one_graph():
    import calotype

    said = {"prompt": "a red star", "seed": 1, "steps": 4}
    pipe = calotype.load("demo", backend="tensorrt")
    result, exact = pipe(**said), calotype.load("demo", backend="eager")(**said)
    assert "painted as one graph" in result.report.notes
    apart = np.abs(np.asarray(result.images[0]).astype(int) - np.asarray(exact.images[0]))
    assert apart.max() <= 12


def test_a_lora_comes_and_goes_on_engines_that_are_built_for_it(tmp_path):
    import calotype
    from calotype.export import BuildSpec, build
    from calotype.export.sources.source import find
    from calotype.plan.profile import Range

    side, said = Range(min=128, opt=128, max=128), {"prompt": "a red star", "seed": 1, "steps": 4}
    build(BuildSpec(model="demo", output=tmp_path, backend="tensorrt", height=side, width=side, engine=("refit",)))
    pipe, painted = calotype.load(tmp_path, backend="tensorrt"), []
    try:
        for weight in (0, 1.0, -2.0, 1.0, 0):
            pipe.set_lora((find("demo") / "outline.safetensors", weight))
            painted.append(np.asarray(pipe(**said).images[0]))
    except BackendError as told:  # the residue, as above
        if "did not remove" not in str(told):
            raise
        pytest.xfail(str(told))
    none, a, b, again, after = painted
    assert (a != none).any()
    assert (a != b).any()
    assert (a == again).all()
    assert (none == after).all()
