"""`calotype build` and `calotype.load` for GPU backends, on stand-ins whose device memory is the CPU's.

`standin.py` replaces TensorRT, and its engines compute. Kernels are their torch references, and captures are calls.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import calotype
from calotype import backends
from calotype.backends.tensorrt import runner as tensorrt_runner
from calotype.errors import BackendError, BuildError
from calotype.export import build
from calotype.export.tensorrt import engines
from calotype.export.tensorrt.options import EngineOptions
from calotype.loading import load
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent
from calotype.plan.profile import Profile, Range
from calotype.system.nvidia import has_gpu
from tests.helpers import tensorrt_standin
from tests.helpers.backends import change_backend
from tests.helpers.small_builds import levels, small_spec

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}
SIDE = Range(min=64, opt=64, max=128)


@pytest.mark.parametrize("backend", ["tensorrt", "cuda"])
def test_a_plan_is_built_evaluated_and_run_as_one_graph(backend, on_a_gpu, pipes, tmp_path):
    more = {"engine": ("chunks=2",)} if backend == "tensorrt" else {}
    plan = build(small_spec(backend, tmp_path / "plan", **more)).plan
    assert (tmp_path / "plan" / "unet" / ("model.engine" if backend == "tensorrt" else "config.json")).is_file()
    assert plan.build["proof"]["psnr"] > 60
    assert not build(small_spec(backend, tmp_path / "plan", **more)).fresh
    if backend == "tensorrt":
        assert plan.build["engine"] == ["chunks=2"]
        states = plan.components["unet"].artifacts[0].check["engine"]["shapes"]["encoder_hidden_states"]
        assert [size[1] for size in states] == [77, 77, 2 * 77]
    assert {a.form for c in plan.components.values() for a in c.artifacts} == {backends.form_of(backend)}
    gpu_names = {"tensorrt": "NVIDIA STAND-IN, driver 1", "cuda": None}
    assert plan.build["machine"]["gpu"] == gpu_names[backend]
    pipe = load(tmp_path / "plan")  # auto tries the backend of the plan first
    result = pipe(PROMPT, **SMALL)
    assert {c.backend for c in result.report.components} == {backend}
    assert any("one graph" in note for note in result.report.notes)
    assert levels(result, pipes["eager"](PROMPT, **SMALL)) <= 1
    long_prompt_result = pipe(f"{PROMPT}, and {'very ' * 18}large", **SMALL)  # two chunks of text
    assert any("one graph" in note for note in long_prompt_result.report.notes)


def convolution(folder, draw) -> Path:
    """Write y = conv(x) with random weights, as a trace in this folder."""
    folder.mkdir()
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4, "h", "w"]) for n in "xy")
    weight = onnx.numpy_helper.from_array(draw.standard_normal((4, 4, 3, 3), dtype=np.float32), "weight")
    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1], doc_string=f"{folder}, line 3")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


def test_only_an_exact_refit_is_used(on_a_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))  # without engines of earlier runs
    draw, sizes = np.random.default_rng(0), Range(min=8, opt=8, max=16)
    x, y = (Binding(name=n, dtype="float32", dims=("batch", 4, "height", "width")) for n in "xy")
    profile = Profile(batch=Range(min=1, opt=1, max=2), height=sizes, width=sizes, multiple=8)
    builder = engines.Engines(backend="tensorrt", profile=profile, options=EngineOptions(refit=True))

    def engine(name):
        graph = Artifact(form="onnx", path=convolution(tmp_path / name, draw), precision="fp32", check={})
        component = PlannedComponent(name="vae_decoder", inputs=(x,), outputs=(y,), artifacts=(graph,), refused={})
        artifact = builder.of(component, graph)
        array = draw.standard_normal((2, 4, 8, 16), dtype=np.float32)
        runner = tensorrt_runner.open_with_library("tensorrt", component, artifact)
        (expected,) = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"]).run(
            None, {"x": array}
        )
        np.testing.assert_array_equal(runner({"x": array})["y"], expected)
        return artifact.check["engine"]

    assert "refitted" not in engine("first")
    assert engine("lora")["refitted"].endswith("model.engine")
    for failing_refit, keyword in ((1, "no effect"), (2, "residue")):
        tensorrt_standin.Refitter._lost = failing_refit
        check = engine(f"refit {failing_refit} fails")
        assert keyword in check["built because"]
        assert "refitted" not in check


def test_a_model_is_loaded_by_name_and_auto_gives_reasons(on_a_gpu, pipes, monkeypatch):
    pipe = load("demo", backend="tensorrt")
    assert pipe.plan.profile.height == Range(min=64, opt=128, max=192)
    assert levels(pipe(PROMPT, **SMALL), pipes["eager"](PROMPT, **SMALL)) <= 1
    auto = load("demo").component("unet")
    assert auto.runner.backend == "cuda"
    assert auto.why == "first of auto's list that runs; not tensorrt: the plan has no tensorrt artifact of the unet"
    change_backend(monkeypatch, "cuda", unavailable=lambda: "triton is not installed")
    why = load("demo").component("unet").why
    assert "not cuda: triton is not installed; not onnxruntime-cuda: this ONNX Runtime has no CUDA provider" in why


def test_without_a_gpu_auto_tries_no_gpu_backend(monkeypatch):
    for name in backends.ON_GPU:
        change_backend(monkeypatch, name, unavailable=lambda: pytest.fail("it was tried"))
    assert not set(backends.choose("auto").requested) & set(backends.ON_GPU)


def test_a_gpu_is_detected_by_its_driver_and_can_be_hidden(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not has_gpu(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert has_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not has_gpu(tmp_path)


def test_gpu_backends_refuse_unsupported_builds(on_a_gpu, monkeypatch, tmp_path):
    for more in ({"precision": "int8"}, {"weights": "int8"}):
        with pytest.raises(BuildError, match="cuda"):
            build(small_spec("cuda", tmp_path / "plan", **more))
    change_backend(monkeypatch, "onnxruntime-cuda", unavailable=lambda: None)
    with pytest.raises(BuildError, match="fp16"):
        build(small_spec("onnxruntime-cuda", tmp_path / "plan", precision="int8"))


def test_sizes_outside_of_an_engine_are_refused(on_a_gpu):
    pipe = load("demo", backend="tensorrt")
    with pytest.raises(calotype.InputError, match="192"):
        pipe(PROMPT, height=256)
    with pytest.raises(BackendError, match="was built for"):
        pipe.component("vae_decoder")(latent_sample=np.zeros((1, 4, 64, 64), np.float32))
