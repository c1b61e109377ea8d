"""Statistics of `observe` against numpy, on a graph small enough to compute by hand."""

import stat

import numpy as np
import onnx_ir as ir
import pytest

from calotype.export.precision.activation_stats import observe

RNG = np.random.default_rng(0)


@pytest.fixture
def graph(tmp_path):
    """y = Conv(x, w); z = 3 y, in a read-only folder, with the weight in a separate file."""
    x, y, z = (
        ir.Value(name=n, shape=ir.Shape(["b", 4, "h", "w"]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xyz"
    )
    w = ir.Value(name="w", const_value=ir.tensor(RNG.standard_normal((4, 4, 1, 1), dtype=np.float32), name="w"))
    three = ir.Value(name="three", const_value=ir.tensor(np.float32(3), name="three"))
    nodes = [ir.node("Conv", [x, w], outputs=[y]), ir.node("Mul", [y, three], outputs=[z])]
    graph = ir.Graph([x], [z], nodes=nodes, initializers=[w, three], opset_imports={"": 21}, name="g")
    folder = tmp_path / "model"
    folder.mkdir()
    weight = w.const_value.numpy().copy()
    ir.save(ir.Model(graph, ir_version=10), folder / "model.onnx", external_data="model.onnx.data")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield folder / "model.onnx", weight
    folder.chmod(0o755)


def feeds(*sizes):
    return [{"x": RNG.standard_normal((b, 4, h, w), dtype=np.float32)} for b, h, w in sizes]


def test_largest_magnitudes_over_feeds_of_several_sizes(graph):
    path, weight = graph
    inputs = feeds((1, 2, 3), (2, 5, 4))
    seen = observe(path, iter(inputs))
    assert list(seen) == ["x", "y", "z"]
    outputs = [np.einsum("bihw,oi->bohw", f["x"], weight[:, :, 0, 0]) for f in inputs]
    amax = max(np.abs(y).max() for y in outputs)
    assert seen["y"].amax == pytest.approx(amax, rel=1e-5)
    assert seen["z"].amax == pytest.approx(3 * amax, rel=1e-5)
    assert seen["x"].amax == max(np.abs(f["x"]).max() for f in inputs)
    assert all(o.finite for o in seen.values())
    assert [p.name for p in sorted(path.parent.iterdir())] == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_detected(graph, bad):
    first, second = feeds((1, 4, 4), (1, 4, 4))
    first["x"][0, 2, 1, 3] = bad
    seen = observe(graph[0], [first, second], ["y"])
    assert list(seen) == ["y"]
    assert not seen["y"].finite


def test_an_unknown_name_is_an_error(graph):
    with pytest.raises(ValueError, match="'w'"):
        observe(graph[0], [], ["w"])
