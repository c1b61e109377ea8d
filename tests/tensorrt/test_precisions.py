"""`calotype build --backend tensorrt` in half precision and in eight bits, on a stand-in: engines of every component.

The stand-in's speed says nothing about a GPU. So the tests set a speed-up that makes the build keep each engine.
"""

import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calotype.cli import app
from calotype.export import build
from calotype.export.quality import evaluate
from calotype.export.quality.bounds import parse_bounds
from calotype.loading import load
from tests.helpers.small_builds import small_spec

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}
ZEROS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def types_of(engine) -> set[int]:
    """Return the types of the graph's initializers: weights, and zero points of quantizers."""
    graph, _, _ = pickle.loads(engine.read_bytes())
    return {tensor.data_type for tensor in onnx.load_from_string(graph).graph.initializer}


@pytest.mark.parametrize(("precision", "plan_name"), [("fp16", "fp16"), ("int8", "int8+fp16"), ("fp8", "fp8+fp16")])
def test_engines_of_every_component_are_built_and_opened(
    precision, plan_name, on_a_gpu, pipes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "compare_speed", lambda **options: {"speed": 2.0})
    more = {"precision": precision, "calibration": 1, "max_loss": parse_bounds(["psnr>=20"])}
    plan = build(small_spec("tensorrt", tmp_path / "plan", **more)).plan
    tuned = {"text_encoder", "unet", "vae_decoder"} | ({"vae_encoder"} if precision == "fp16" else set())
    expected = {name: plan_name if name in tuned else "fp32" for name in plan.components}
    assert {n: (c.artifacts[0].form, c.artifacts[0].precision) for n, c in plan.components.items()} == {
        name: ("tensorrt", precision) for name, precision in expected.items()
    }
    for name in tuned:
        types = types_of(plan.components[name].artifacts[0].path)
        assert TensorProto.FLOAT16 in types
        assert precision == "fp16" or ZEROS[precision] in types
    assert plan.build["precision"] == precision
    app(["inspect", str(tmp_path / "plan")], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert all(any(name in line and p in line for line in lines) for name, p in expected.items())
    pipe = load(tmp_path / "plan")
    result = pipe(PROMPT, **SMALL)
    assert {c.name: (c.backend, c.precision) for c in result.report.components} == {
        name: ("tensorrt", expected[name]) for name in ("text_encoder", "unet", "vae_decoder")
    }
    assert any("one graph" in note for note in result.report.notes)
    difference = np.abs(np.asarray(result.images[0], float) - np.asarray(pipes["eager"](PROMPT, **SMALL).images[0]))
    assert difference.mean() < (1 if precision == "fp16" else 8)
