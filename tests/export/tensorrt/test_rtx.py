"""TensorRT-RTX parses and builds every component of every family, without a GPU; its errors become `BuildError`.

Graphs are tiny and have random weights. Eight-bit graphs have ranges of one: the tests check that the library accepts
them.
"""

import functools
import re
from dataclasses import replace
from types import ModuleType

import onnx
import pytest
from onnx import TensorProto, helper

from calotype.errors import BuildError, Cancelled
from calotype.export import prepare
from calotype.export.precision.candidates import candidates
from calotype.export.precision.half_convert import lower
from calotype.export.precision.quantize import quantize
from calotype.export.store import store
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.engines import Engines
from calotype.export.tensorrt.options import EngineOptions
from calotype.plan.profile import Range
from tests.helpers.tiny_models import save_controlnet

OPTIONS = EngineOptions(targets=(89,))
COMPONENTS = {
    "sd1": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "sd2": ("text_encoder", "unet"),
    "sdxl": ("text_encoder_2", "unet"),
    "sd1 with a ControlNet": ("unet", "controlnet"),
}
PRECISIONS = ("fp16", "int8+fp16", "fp8+fp16")  # of engines, besides float32
# All precisions of one U-Net, and of other components one in turn: a precision knows no components.
CASES = [("sd1", "unet", p) for p in ("fp32", *PRECISIONS)]
OTHERS = [(f, n) for f, names in COMPONENTS.items() for n in names if (f, n) != ("sd1", "unet")]
CASES += [(f, n, PRECISIONS[turn % len(PRECISIONS)]) for turn, (f, n) in enumerate(OTHERS)]


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")


@pytest.fixture(scope="module")
def control(demo_folder, tmp_path_factory):
    """A ControlNet for the demonstration model, which other tests trace as well."""
    return save_controlnet(demo_folder / "unet", tmp_path_factory.mktemp("control") / "net", 0)


@pytest.fixture(scope="module")
def plans(trt, request):
    """A function from a family to its plan, which is traced at the first call."""
    makers = {
        "sd1": lambda: prepare("demo"),
        "sd2": lambda: prepare(request.getfixturevalue("sd21_folder")),
        "sdxl": lambda: prepare(request.getfixturevalue("sdxl_folder")),
        "sd1 with a ControlNet": lambda: prepare("demo", controlnets=[request.getfixturevalue("control")]),
    }
    return functools.cache(lambda family: makers[family]())


def narrow(profile):
    side = Range(min=profile.multiple * 2, opt=profile.multiple * 4, max=profile.multiple * 8)
    return replace(profile, batch=Range(min=1, opt=1, max=2), height=side, width=side)


def in_precision(source, precision, folder):
    """Return the traced graph, lowered to the precision."""
    kind, _, half = precision.rpartition("+") if precision != "fp32" else ("", "", "")
    if half:
        folder.mkdir(exist_ok=True)
        lower(source, folder / "half.onnx", precision=half, islands=[])
        source = folder / "half.onnx"
    if kind:
        ranges = dict.fromkeys((name for c in candidates(source) for name in (c.reads, c.gives)), 1.0)
        quantize(source, folder / "quantized.onnx", ranges=ranges, dtype=kind)
        source = folder / "quantized.onnx"
    return source


@pytest.mark.parametrize(("family", "name", "precision"), CASES)
def test_it_builds_every_component(family, name, precision, trt, plans, tmp_path):
    plan = plans(family)
    component = plan.components[name]
    graph = in_precision(component.artifact("onnx").path, precision, tmp_path)
    shapes = shapes_of(name, component.inputs, narrow(plan.profile), chunks=2)
    assert build_engine(trt, graph, [shapes], OPTIONS).engine


def relu(folder, op="Relu", domain=""):
    """x -> y by one node."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy")
    node = helper.make_node(op, ["x"], ["y"], name="the_node", domain=domain)
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


SHAPES = {"x": ((1, 4), (2, 4), (8, 4))}


def test_two_profiles_go_into_one_engine(trt, tmp_path):
    one = len(build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS).engine)
    wide = {"x": ((1, 4), (64, 4), (64, 4))}
    assert len(build_engine(trt, relu(tmp_path), [SHAPES, wide], OPTIONS).engine) > one


@pytest.mark.parametrize(
    ("shapes", "keyword"),
    [
        ({"x": ((8, 4), (2, 4), (1, 4))}, r"x \[8, 4\]:\[2, 4\]:\[1, 4\]"),
        ({"x": ((1, 5), (2, 5), (8, 5))}, "sizes|cannot build"),
        ({"x": ((1,), (2,), (8,))}, "sizes|cannot build"),
        ({"z": ((1, 4), (2, 4), (8, 4))}, r"\['z'\]"),
        ({}, r"\['x'\]"),
    ],
    ids=["falling", "another width", "another rank", "another tensor", "empty"],
)
def test_a_wrong_profile_is_a_build_error(shapes, keyword, trt, tmp_path):
    with pytest.raises(BuildError, match=keyword):
        build_engine(trt, relu(tmp_path), [shapes], OPTIONS)


def test_an_unknown_operator_is_a_build_error(trt, tmp_path):
    with pytest.raises(BuildError, match=r"the_node \(Develop\)"):
        build_engine(trt, relu(tmp_path, "Develop", "calotype"), [SHAPES], OPTIONS)


def test_a_missing_or_broken_graph_is_a_build_error(trt, tmp_path):
    with pytest.raises(BuildError, match=r"none\.onnx"):
        build_engine(trt, tmp_path / "none.onnx", [SHAPES], OPTIONS)
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(BuildError, match=r"junk\.onnx"):
        build_engine(trt, tmp_path / "junk.onnx", [SHAPES], OPTIONS)


def test_an_unsupported_gpu_is_a_build_error(trt, tmp_path):
    with pytest.raises(BuildError, match=r"90.*120, 121, 75, 80, 86, 89"):
        build_engine(trt, relu(tmp_path), [SHAPES], replace(OPTIONS, targets=(90,)))


def test_it_reports_its_steps_and_can_be_cancelled(trt, tmp_path):
    seen = []
    build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS, watch=lambda p: seen.append(p) or True)
    assert seen
    assert all(0 <= p.done <= p.of for p in seen)
    with pytest.raises(Cancelled):
        build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS, watch=lambda p: False)

    def broken(phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS, watch=broken)


def test_a_build_in_a_child_process_reports_progress_and_an_error_of_the_listener_ends_it(
    trt, plans, tmp_path, monkeypatch
):
    plan, lines = plans("sd1"), []
    component = plan.components["vae_decoder"]
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    engines = Engines(backend="tensorrt-rtx", profile=narrow(plan.profile), options=OPTIONS, tell=lines.append)
    artifact = engines.of(component, component.artifact("onnx"))
    assert (artifact.form, artifact.precision, artifact.path.name) == ("tensorrt-rtx", "fp32", "model.engine")
    assert lines
    assert all(re.fullmatch(r".+, \d+ of \d+", line) for line in lines)
    entries = {entry.key for entry in store.STORE.entries()}

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(engines, options=replace(OPTIONS, level=1), tell=interrupt).of(component, component.artifact("onnx"))
    assert {entry.key for entry in store.STORE.entries()} == entries
    assert not list(store.STORE.root.glob(".making-*"))


def test_flags_that_work_without_a_gpu(trt, tmp_path):
    for options in ({"weight_streaming": True}, {"level": 1}, {"workspace_bytes": 2**24}, {"targets": (86, 89)}):
        assert build_engine(trt, relu(tmp_path), [SHAPES], replace(OPTIONS, **options)).engine


def test_an_invalid_timing_cache_is_ignored(trt, tmp_path):
    first = build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS)
    for cache in (first.timing_cache, b"junk"):
        assert build_engine(trt, relu(tmp_path), [SHAPES], OPTIONS, timing_cache=cache).engine
