"""`calotype build --backend tensorrt` in half precision and in eight bits, on a stand-in: engines of every component.

The stand-in's speed says nothing of a GPU's: each engine is said to be worth having.
"""

import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calotype.cli import app
from calotype.export import build
from calotype.export.quality import evaluate as proving
from calotype.export.quality.bounds import parse_bounds
from calotype.loading import load

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}
ZEROS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def types_of(engine) -> set[int]:
    """Of the numbers that the engine's graph keeps: weights, and the zeros of its quantizers."""
    graph, _, _ = pickle.loads(engine.read_bytes())
    return {tensor.data_type for tensor in onnx.load_from_string(graph).graph.initializer}


@pytest.mark.parametrize(("precision", "named"), [("fp16", "fp16"), ("int8", "int8+fp16"), ("fp8", "fp8+fp16")])
def test_engines_of_every_component_are_built_named_and_opened(
    precision, named, on_a_gpu, spec, pipes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(proving, "compare_speed", lambda **given: {"speed": 2.0})
    more = {"precision": precision, "calibration": 1, "max_loss": parse_bounds(["psnr>=20"])}
    plan = build(spec("tensorrt", tmp_path / "plan", **more)).plan
    tuned = {"text_encoder", "unet", "vae_decoder"} | ({"vae_encoder"} if precision == "fp16" else set())
    wanted = {name: named if name in tuned else "fp32" for name in plan.components}
    assert {n: (c.artifacts[0].form, c.artifacts[0].precision) for n, c in plan.components.items()} == {
        name: ("tensorrt", precision) for name, precision in wanted.items()
    }
    for name in tuned:
        types = types_of(plan.components[name].artifacts[0].path)
        assert TensorProto.FLOAT16 in types
        assert precision == "fp16" or ZEROS[precision] in types
    assert plan.build["precision"] == precision
    app(["inspect", str(tmp_path / "plan")], standalone_mode=False)
    told = capsys.readouterr().out
    assert all(any(name in line and p in line for line in told.splitlines()) for name, p in wanted.items())
    pipe = load(tmp_path / "plan")
    result = pipe(PROMPT, **SMALL)
    assert {c.name: (c.backend, c.precision) for c in result.report.components} == {
        name: ("tensorrt", wanted[name]) for name in ("text_encoder", "unet", "vae_decoder")
    }
    assert "painted as one graph" in result.report.notes
    apart = np.abs(np.asarray(result.images[0], float) - np.asarray(pipes["eager"](PROMPT, **SMALL).images[0]))
    assert apart.mean() < (1 if precision == "fp16" else 8)
