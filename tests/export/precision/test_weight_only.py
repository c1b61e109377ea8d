"""Weights in int8 and int4: the file, its error, and that both CPU backends read it alike."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from calotype.errors import InputError
from calotype.export import prepare
from calotype.export.precision.half_convert import lower
from calotype.export.precision.weight_only import BLOCK, weight_only

INT8, INT4 = onnx.TensorProto.INT8, onnx.TensorProto.INT4
GRAPH = """g (float[1, 64, h, w] x, float[n, 64] v) => (float[1, 96, h, w] y, float[n, 96] z, float[n, 96] s)
{
    [conv] y = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, c)
    [gemm] z = Gemm <transB = 1> (v, g, bias)
    [again] a = Gemm <transB = 1> (v, g, bias)
    [product] p = MatMul(v, m)
    [odd] o = Gemm <transB = 1, alpha = 0.5> (v, g, bias)
    [sum] s = Sum(a, p, o)
}"""


@pytest.fixture
def source(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"c": (96, 64, 3, 3), "g": (96, 64), "m": (64, 96), "bias": (96,)}
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {GRAPH}')
    for name, shape in shapes.items():
        numbers = rng.standard_normal(shape, dtype=np.float32) * rng.uniform(
            0.1, 2, (shape[0], *[1] * (len(shape) - 1))
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers.astype(np.float32), name))
    path = tmp_path / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path, save_as_external_data=True, location="model.onnx.data")
    return path


@pytest.fixture
def feeds():
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((1, 64, 5, 7), np.float32), "v": rng.standard_normal((3, 64), np.float32)}


def off(got, expected) -> float:
    """Relative L2."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("bits", "dtype", "within"), [(8, INT8, 0.02), (4, INT4, 0.12)])
def test_weights_are_integers_and_the_results_near(bits, dtype, within, source, feeds, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.export.onnx.file.INLINE_BYTES", 64)
    out = tmp_path / "small" / "model.onnx"
    report = weight_only(source, out, bits=bits)
    assert (report.weights, report.bits) == (3, bits)  # g once for its two readers
    assert 0.001 < report.worst < within
    assert report.bytes_after < report.bytes_before * bits / 8
    onnx.checker.check_model(out, full_check=True)
    model = onnx.load(out)
    kinds = {t.name: t for t in model.graph.initializer}
    assert sorted(t.data_type for t in kinds.values()).count(dtype) == 3
    operators = [n.op_type for n in model.graph.node]
    assert operators.count("DequantizeLinear") == 3
    assert operators.count("Gemm") == 1  # the odd one, which MatMul and Add cannot replace
    expected = onnxruntime.InferenceSession(source).run(None, feeds)
    got = onnxruntime.InferenceSession(out).run(None, feeds)
    assert max(map(off, got, expected)) < within
    compiled = openvino.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert max(map(off, list(compiled(feeds).values()), expected)) < within


def test_the_scales_are_those_of_channels_or_blocks(source, tmp_path):
    channels, blocks = tmp_path / "8" / "model.onnx", tmp_path / "4" / "model.onnx"
    weight_only(source, channels, bits=8)
    weight_only(source, blocks, bits=4)
    assert BLOCK == 32
    for path, expected in (
        (channels, {"c": [96], "g": [96], "m": [96]}),
        (blocks, {"c": [96, 2, 3, 3], "g": [2, 96], "m": [2, 96]}),
    ):
        scales = {t.name.split(".")[0]: list(t.dims) for t in onnx.load(path).graph.initializer if "scale" in t.name}
        assert scales == expected


def test_weights_that_cannot_be_divided_into_blocks_stay(tmp_path):
    text = "g (float[n, 100] x) => (float[n, 64] y) { [m] y = MatMul(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    weight = np.random.default_rng(0).standard_normal((100, 64), np.float32)
    weight[:, 7] = 0  # a channel without a scale
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    assert weight_only(tmp_path / "model.onnx", tmp_path / "4" / "model.onnx", bits=4).weights == 0
    assert weight_only(tmp_path / "model.onnx", tmp_path / "8" / "model.onnx", bits=8).weights == 1
    x = np.ones((2, 100), np.float32)
    y = onnxruntime.InferenceSession(tmp_path / "8" / "model.onnx").run(None, {"x": x})[0]
    assert np.isfinite(y).all()
    assert (y[:, 7] == 0).all()


def test_integers_and_half_precision_go_together(source, feeds, tmp_path):
    """The scales become half tensors, and with them what is dequantized."""
    small, out = tmp_path / "small" / "model.onnx", tmp_path / "half" / "model.onnx"
    weight_only(source, small, bits=8)
    lower(small, out, precision="fp16", islands=[])
    onnx.checker.check_model(out, full_check=True)
    expected = onnxruntime.InferenceSession(small).run(None, feeds)
    got = onnxruntime.InferenceSession(out).run(None, feeds)
    assert max(map(off, got, expected)) < 0.02


def test_the_demonstration_models_unet_in_int8_is_near(pipe, tmp_path):
    source = prepare("demo").components["unet"].artifact("onnx").path
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((2, 4, 16, 16), np.float32),
        "timestep": np.array([999, 250], np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, 128), np.float32),
    }
    expected = onnxruntime.InferenceSession(source).run(None, feeds)[0]
    for bits, part, within in ((8, 0.35, 0.01), (4, 0.25, 0.1)):
        report = weight_only(source, tmp_path / str(bits) / "model.onnx", bits=bits)
        assert report.bytes_after < part * report.bytes_before
        got = onnxruntime.InferenceSession(tmp_path / str(bits) / "model.onnx").run(None, feeds)[0]
        assert off(got, expected) < within


def test_other_numbers_of_bits_and_old_graphs_are_rejected(source, tmp_path):
    with pytest.raises(InputError, match="5 bits"):
        weight_only(source, tmp_path / "x", bits=5)
    with pytest.raises(InputError, match="is the source"):
        weight_only(source, source, bits=8)
    model = onnx.load(source)
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(InputError, match="opset 18"):
        weight_only(tmp_path / "old.onnx", tmp_path / "x", bits=8)
