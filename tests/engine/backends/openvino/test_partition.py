"""Sessions of small networks of every kind equal the full network, whatever depends on what."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calotype.backends.base import inputs_of_call
from calotype.backends.openvino import one_graph, requests
from calotype.backends.openvino.network import core
from calotype.backends.openvino.runner import OpenVinoRunner
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent

RNG = np.random.default_rng(0)
SHAPES = {
    "sample": ["b", 4, 6, 6],
    "timestep": ["b"],
    "text": ["b", 3, 8],
    "vector": ["b", 5],
    "residual": ["b", 4, 6, 6],
}
EMBEDDING = [("Unsqueeze", ["timestep", "one"], "t"), ("MatMul", ["t", "w_time"], "embedding")]
WITH_VECTOR = [("MatMul", ["vector", "w_vector"], "v"), ("Add", ["embedding", "v"], "sum"), ("Tanh", ["sum"], "emb")]
ALONE = [("Tanh", ["embedding"], "emb")]
TEXT = [("MatMul", ["text", "w_text"], "keys"), ("ReduceMean", ["keys", "one"], "mean"), ("Tanh", ["mean"], "context")]
AS_PIXELS = [("Reshape", ["emb", "as_pixels"], "e"), ("Reshape", ["context", "as_pixels"], "c")]
STEP = [("Conv", ["sample", "w_conv"], "h"), ("Add", ["h", "e"], "he"), ("Tanh", ["he"], "s"), ("Mul", ["s", "c"], "y")]
# The embedding is also used by a node that does not add it to a larger tensor.
JOINED = [("Add", ["emb", "context"], "both"), ("Reshape", ["both", "as_pixels"], "b"), ("Mul", ["y", "b"], "z")]
KINDS = {
    "timestep alone": [*EMBEDDING, *ALONE, *TEXT, *AS_PIXELS, *STEP],
    "timestep and a vector": [*EMBEDDING, *WITH_VECTOR, *TEXT, *AS_PIXELS, *STEP],
    "rows of the timestep": [*EMBEDDING, *ALONE, *TEXT, *AS_PIXELS, *STEP, *JOINED],
    "residuals": [*EMBEDDING, *ALONE, *TEXT, *AS_PIXELS, *STEP, ("Add", ["y", "residual"], "z")],
}


def open_model(kind, path, precision="fp32"):
    """Open a network of this kind. Return the runner and the names of its inputs."""
    nodes = KINDS[kind]
    sizes = {"w_time": (1, 4), "w_vector": (5, 4), "w_text": (8, 4), "w_conv": (4, 4, 1, 1)}
    rng = np.random.default_rng(1)  # the same weights at each call
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    weights |= {"one": np.array([1]), "as_pixels": np.array([-1, 4, 1, 1])}
    used = {name for _, names, _ in nodes for name in names}
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in SHAPES.items() if n in used]
    out = nodes[-1][2]
    options = {"ReduceMean": {"keepdims": 0}}
    protos = [helper.make_node(kind, names, [to], **options.get(kind, {})) for kind, names, to in nodes]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, SHAPES["sample"])]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used]
    graph = helper.make_graph(protos, "g", tensors, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    artifact = Artifact(form="onnx", path=path, precision="fp32", check={})
    bindings = [Binding(name=t.name, dtype="float32", dims=tuple(SHAPES[t.name])) for t in tensors]
    output = Binding(name=out, dtype="float32", dims=tuple(SHAPES["sample"]))
    component = PlannedComponent(
        name="unet", inputs=tuple(bindings), outputs=(output,), artifacts=(artifact,), refused={}
    )
    return OpenVinoRunner(component, replace(artifact, precision=precision)), {t.name for t in tensors}


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_session_equals_the_full_network(kind, guided, threads, tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(requests, "_threads", lambda: threads)
    runner, names = open_model(kind, tmp_path / "model.onnx")
    images, timesteps = 2, np.array([0.9, 0.4, 0.1], dtype=np.float32)
    rows = images * (2 if guided else 1)
    constants = {n: numbers(rows, *SHAPES[n][1:]) for n in ("text", "vector") if n in names}
    session = runner.session(constants, timesteps, guided=guided, cache_interval=1)
    for call in range(3):
        sample = numbers(images, 4, 6, 6)
        changing = {n: numbers(rows, 4, 6, 6) for n in ("residual",) if n in names}
        inputs = inputs_of_call(constants, timesteps[call], sample, changing, guided=guided)
        (expected,) = runner({name: inputs[name] for name in names}).values()
        (got,) = session(call, sample, changing).values()
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert runner.notes == ()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_timesteps_that_are_computed_apart_change_nothing(kind, threads, tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    runner, names = open_model(kind, tmp_path / "model.onnx")
    inputs = {name: numbers(4, *SHAPES[name][1:]) for name in names}  # each row has a timestep of its own
    shapes = {name: (4 // threads, *array.shape[1:]) for name, array in inputs.items()}
    groups = [{name: np.split(array, threads)[i] for name, array in inputs.items()} for i in range(threads)]
    (expected,) = runner(inputs).values()
    apart = one_graph.OneGraph(runner, shapes, threads, precise_timesteps=True)
    assert "timestep" not in apart.requests[0].inputs
    (got,) = requests.run(apart.requests, apart.inputs(groups), runner.output_names).values()
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.skipif(
    "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU has no bfloat16 arithmetic"
)
def test_bfloat16_does_not_round_timesteps(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    wave = [("Sin", ["timestep"], "angle"), ("Unsqueeze", ["angle", "one"], "t"), ("MatMul", ["t", "w_time"], "emb")]
    monkeypatch.setitem(KINDS, "wave", [*wave, *TEXT, *AS_PIXELS, *STEP])
    half, names = open_model("wave", tmp_path / "model.onnx", "bf16")
    exact, _ = open_model("wave", tmp_path / "model.onnx")
    inputs = {name: numbers(2, *SHAPES[name][1:]) for name in names} | {"timestep": np.float32([751, 751])}
    (expected,), (got,) = exact(inputs).values(), half(inputs).values()
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
