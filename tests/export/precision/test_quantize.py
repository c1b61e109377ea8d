"""Eight bits in a graph with every kind of candidate: the file, its results, and the precisions that backends use."""

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from calotype.errors import CheckError
from calotype.export.onnx.check import relative_l2
from calotype.export.precision.calibrate import SHARES, calibrate, sensitivity
from calotype.export.precision.candidates import candidates
from calotype.export.precision.quantize import quantize

F32 = ir.DataType.FLOAT
NODES = ["conv_in", "conv_mid", "linear", "gemm", "conv_out"]


def write(path: Path, kind: ir.DataType = F32) -> Path:
    """x -> conv_in -> SiLU -> conv_mid -> linear (channels last) -> + gemm of t, at every place -> conv_out."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name, *shape):
        numbers = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(kind.numpy())
        weights.append(ir.Value(name=name, const_value=ir.tensor(numbers, name=name)))
        weights[-1].shape, weights[-1].dtype = weights[-1].const_value.shape, kind
        return weights[-1]

    def add(name, op, *inputs, shape, **attributes):
        nodes.append(ir.node(op, inputs, attributes, name=name))
        out = nodes[-1].outputs[0]
        out.name, out.dtype, out.shape = f"{name}.out", kind, ir.Shape(shape)
        return out

    def graph_input(name, shape):
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind))

    x, t = graph_input("x", ["b", 8, "h", "w"]), graph_input("t", ["b", 16])
    pads = {"pads": [1, 1, 1, 1]}
    y = add("conv_in", "Conv", x, weight("w0", 16, 8, 3, 3), weight("b0", 16), shape=["b", 16, "h", "w"], **pads)
    y = add("silu", "Mul", y, add("sigmoid", "Sigmoid", y, shape=y.shape), shape=y.shape)
    y = add("conv_mid", "Conv", y, weight("w1", 16, 16, 3, 3), weight("b1", 16), shape=y.shape, **pads)
    last = add("last", "Transpose", y, shape=["b", "h", "w", 16], perm=[0, 2, 3, 1])
    last = add("linear", "MatMul", last, weight("w2", 16, 24), shape=["b", "h", "w", 24])
    y = add("first", "Transpose", last, shape=["b", 24, "h", "w"], perm=[0, 3, 1, 2])
    g = add("gemm", "Gemm", t, weight("w3", 24, 16), weight("b3", 24), shape=["b", 24], transB=1)
    axes = ir.Value(name="axes", const_value=ir.tensor(np.asarray([2, 3]), name="axes"))
    g = add("wide", "Unsqueeze", g, axes, shape=["b", 24, 1, 1])
    y = add("sum", "Add", y, g, shape=y.shape)
    y = add("conv_out", "Conv", y, weight("w4", 4, 24, 1, 1), shape=["b", 4, "h", "w"])
    graph = ir.Graph([x, t], [y], nodes=nodes, initializers=[*weights, axes], opset_imports={"": 21}, name="g")
    path.parent.mkdir()
    ir.save(ir.Model(graph, ir_version=10), path, external_data="model.onnx.data")
    return path


def feeds(count, kind=np.float32, seed=1):
    rng = np.random.default_rng(seed)
    sizes = [(1 + i % 2, 6 + i, 9) for i in range(count)]
    shapes = [{"x": (b, 8, h, w), "t": (b, 16)} for b, h, w in sizes]
    return [{n: rng.uniform(-2, 2, s).astype(kind) for n, s in shape.items()} for shape in shapes]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("graph") / "source" / "model.onnx")


@pytest.fixture(scope="module")
def ranges(source):
    return calibrate(source, feeds(4))


def run(path, inputs, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in inputs]


def loss(path, source, inputs):
    return max(relative_l2(g, w) for g, w in zip(run(path, inputs), run(source, inputs), strict=True))


def kinds(path):
    return collections.Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_candidates_with_their_tensors(source):
    nodes = {c.node: c for c in candidates(source)}
    assert list(nodes) == ["conv_in", "conv_mid", "linear", "gemm", "conv_out"]
    assert [c.kind for c in nodes.values()] == ["Conv", "Conv", "MatMul", "Gemm", "Conv"]
    assert (nodes["linear"].reads, nodes["linear"].gives, nodes["linear"].weight) == ("last.out", "linear.out", "w2")
    assert [c.axis for c in nodes.values()] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(("dtype", "allowed"), [("int8", 0.04), ("uint8", 0.04), ("fp8", 0.15)])
def test_it_is_a_valid_graph_that_computes_nearly_the_same_at_other_sizes(source, ranges, tmp_path, dtype, allowed):
    report = quantize(source, tmp_path / "q.onnx", ranges=ranges, dtype=dtype)
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    assert 1e-4 < loss(tmp_path / "q.onnx", source, feeds(3, seed=2)) < allowed
    assert {*report.quantized, *report.kept} == {c.node for c in candidates(source)}
    assert report.size_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 127), ("fp8", 448)])
def test_weights_are_stored_in_eight_bits_with_a_scale_for_each_output_channel(source, ranges, tmp_path, dtype, steps):
    quantize(source, tmp_path / "q.onnx", ranges=ranges, dtype=dtype)
    written, before = (ir.load(path).graph.initializers for path in (tmp_path / "q.onnx", source))
    for candidate in candidates(source):
        assert candidate.weight not in written
        name, axis = f"{candidate.weight}.{candidate.axis}", candidate.axis
        stored, scale = (written[f"{name}.{part}"].const_value.numpy() for part in ("quantized", "scale"))
        original = before[candidate.weight].const_value.numpy()
        assert stored.itemsize == 1
        others = tuple(a for a in range(original.ndim) if a != axis)
        np.testing.assert_allclose(scale, np.abs(original).max(others) / steps, rtol=1e-6)
        wide = np.expand_dims(scale, others)
        # An integer is off by at most half a step; an fp8 number by a sixteenth of itself, or half the smallest step.
        bound = 0.5 * wide if dtype == "int8" else np.maximum(np.abs(original) / 16, wide * 2**-10)
        assert (np.abs(stored.astype(np.float32) * wide - original) <= bound * (1 + 1e-5)).all()


def test_kept_nodes_do_not_change(source, ranges, tmp_path):
    report = quantize(source, tmp_path / "q.onnx", ranges=ranges, keep=["conv_in", "linear"])
    assert report.kept == ("conv_in", "linear")
    assert report.quantized == ("conv_mid", "gemm", "conv_out")
    nodes = {node.name: node for node in ir.load(tmp_path / "q.onnx").graph}
    for name, reads in (("conv_in", ["x", "w0", "b0"]), ("linear", ["last.out", "w2"])):
        assert [value.name for value in nodes[name].inputs] == reads
    quantize(source, tmp_path / "same.onnx", ranges={}, keep=[c.node for c in candidates(source)])
    assert loss(tmp_path / "same.onnx", source, feeds(1)) == 0


def test_a_tensor_is_quantized_once_for_all_its_readers(tmp_path):
    path = write(tmp_path / "source" / "model.onnx")
    model = ir.load(path)
    mid = next(node for node in model.graph if node.name == "conv_mid")
    again = ir.node("Conv", [mid.inputs[0], mid.inputs[1]], {"pads": [1, 1, 1, 1]}, name="again")
    again.outputs[0].name, again.outputs[0].dtype, again.outputs[0].shape = "again.out", F32, mid.outputs[0].shape
    model.graph.insert_after(mid, again)
    total = ir.node("Add", [mid.outputs[0], again.outputs[0]], name="total")
    for user, index in tuple(mid.outputs[0].uses()):
        if user.name != "total":
            user.replace_input_with(index, total.outputs[0])
    model.graph.insert_after(again, total)
    ir.save(model, tmp_path / "twice.onnx", external_data="twice.onnx.data")
    quantize(tmp_path / "twice.onnx", tmp_path / "q.onnx", ranges=calibrate(tmp_path / "twice.onnx", feeds(2)))
    assert kinds(tmp_path / "q.onnx")["QuantizeLinear"] == len(NODES)
    assert loss(tmp_path / "q.onnx", tmp_path / "twice.onnx", feeds(2)) < 0.04


def test_a_graph_in_half_gets_scales_in_half(tmp_path):
    path = write(tmp_path / "source" / "model.onnx", ir.DataType.FLOAT16)
    inputs = feeds(3, np.float16)
    quantize(path, tmp_path / "q.onnx", ranges=calibrate(path, inputs))
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    written = ir.load(tmp_path / "q.onnx").graph.initializers
    assert {v.dtype for name, v in written.items() if name.endswith(".scale")} == {ir.DataType.FLOAT16}
    assert loss(tmp_path / "q.onnx", path, inputs) < 0.06


def test_zeros_have_a_scale_as_well(source, tmp_path):
    model = ir.load(source)
    zeroed = model.graph.initializers["w1"]
    numbers = zeroed.const_value.numpy().copy()
    numbers[3] = 0
    zeroed.const_value = ir.tensor(numbers, name="w1")
    ir.save(model, tmp_path / "zeroed.onnx", external_data="zeroed.onnx.data")
    inputs = [{name: array * 0 for name, array in feeds(1)[0].items()}]
    quantize(tmp_path / "zeroed.onnx", tmp_path / "q.onnx", ranges=calibrate(tmp_path / "zeroed.onnx", inputs))
    written = ir.load(tmp_path / "q.onnx").graph.initializers
    scales = [v.const_value.numpy() for name, v in written.items() if name.endswith(".scale")]
    assert all((scale > 0).all() for scale in scales)  # TensorRT rejects others
    assert all(np.isfinite(out).all() for out in run(tmp_path / "q.onnx", [*inputs, *feeds(1)]))


def test_a_missing_range_is_an_error(source, ranges, tmp_path):
    with pytest.raises(KeyError, match="last"):
        quantize(source, tmp_path / "q.onnx", ranges={k: v for k, v in ranges.items() if k != "last.out"})


def test_ranges_are_cut_where_that_lowers_the_squared_error_and_never_far(source):
    inputs = feeds(2)
    peak = max(np.abs(feed["x"]).max() for feed in inputs)
    plain = calibrate(source, inputs)
    assert set(plain) == {name for c in candidates(source) for name in (c.reads, c.gives)}
    assert any(plain["x"] == pytest.approx(peak * share) for share in SHARES)
    inputs[0]["x"][0, 0, 0, 0] = 1000.0  # one outlier: a smaller range would save nothing else
    assert calibrate(source, inputs)["x"] == pytest.approx(1000.0)
    assert calibrate(source, inputs, "fp8")["t"] == pytest.approx(max(np.abs(feed["t"]).max() for feed in inputs))


def test_a_tensor_that_is_not_finite_has_no_range(source):
    inputs = feeds(1)
    inputs[0]["x"][0, 0, 0, 0] = np.inf
    with pytest.raises(CheckError, match="finite"):
        calibrate(source, inputs)


def test_sensitivity_ranks_groups_and_a_bad_range_shows(source, ranges):
    groups = {"nothing": [], "mid": ["conv_mid"], "out": ["conv_out"], "all": NODES}
    inputs = feeds(2)
    errors = sensitivity(source, inputs, ranges, groups)
    assert errors["nothing"] == 0
    assert 0 < max(errors["mid"], errors["out"]) <= errors["all"] < 0.04
    worse = sensitivity(source, inputs, {**ranges, "silu.out": 100 * ranges["silu.out"]}, groups)
    assert worse["mid"] > 10 * errors["mid"]
    assert worse["out"] == errors["out"]


def test_onnx_runtime_computes_its_layout_in_eight_bits(source, ranges, tmp_path):
    report = quantize(source, tmp_path / "q.onnx", ranges=ranges, dtype="uint8")
    assert report.kept == ("gemm", "conv_out")
    run(tmp_path / "q.onnx", feeds(1), optimized=tmp_path / "optimized.onnx")
    fused = kinds(tmp_path / "optimized.onnx")
    assert (fused["QLinearConv"], fused["MatMulIntegerToFloat"], fused["Conv"], fused["MatMul"]) == (2, 1, 1, 0)


def test_openvino_computes_every_candidate_in_eight_bits(source, ranges, tmp_path):
    openvino = pytest.importorskip("openvino")
    quantize(source, tmp_path / "q.onnx", ranges=ranges)
    compiled = openvino.Core().compile_model(tmp_path / "q.onnx", "CPU")
    ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    precisions = [i["runtimePrecision"].value for i in ran if i["layerType"].value in ("Convolution", "FullyConnected")]
    assert len(precisions) == len(NODES)
    assert set(precisions) <= {"i8", "u8"}


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_tensorrt_rtx_builds_it(source, ranges, tmp_path, dtype):
    trt = pytest.importorskip("tensorrt_rtx")
    quantize(source, tmp_path / "q.onnx", ranges=ranges, dtype=dtype)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "q.onnx")), parser.get_error(0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 8, 8, 8), (2, 8, 8, 8), (2, 8, 16, 16))
    profile.set_shape("t", (1, 16), (2, 16), (2, 16))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
