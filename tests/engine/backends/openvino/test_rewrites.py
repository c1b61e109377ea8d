"""Rewritten graphs compute what the original graphs compute, and other graphs stay unchanged."""

import numpy as np
import pytest

from calotype.backends.openvino import network, rewrites
from calotype.backends.openvino.graph import element_types, sized
from calotype.backends.openvino.rewrites import REWRITES, apply_rewrites, enabled_rewrites
from calotype.system.switches import DISABLE_VARIABLE

ov = network.library()
ops = ov.opset13
RNG = np.random.default_rng(0)


def numbers(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def parameter(*shape):
    x = ops.parameter(list(shape), np.float32, name="x")
    x.output(0).set_names({"x"})
    return x


def integers(*values):
    return ops.constant(np.array(values, dtype=np.int64))


def model(output, x):
    return ov.Model([ops.result(output)], [x], "m")


def doubled(x, scale=2.0, mode="nearest", rounding="floor"):
    return ops.interpolate(
        x, ops.constant(np.array([scale] * 2, np.float32)), mode, "scales", axes=integers(2, 3),
        coordinate_transformation_mode="asymmetric", nearest_mode=rounding,
    )  # fmt: skip


def convolved(x, out, into, side=3, stride=1, padding=1):
    return ops.convolution(
        x, ops.constant(numbers(out, into, side, side)), [stride] * 2, [padding] * 2, [padding] * 2, [1, 1]
    )


def upsampled_convolution(height, width, **options):
    x = parameter(2, 5, height, width)
    return model(convolved(doubled(x), 7, 5, **options), x)


def group_norm(channels=12, groups=3, offset=0.0):
    x = parameter(2, channels, 5, 7)
    shifted = ops.add(x, ops.constant(np.float32(offset)))
    scale, shift = (ops.constant(numbers(channels)) for _ in range(2))
    return model(ops.group_normalization(shifted, scale, shift, groups, 1e-5), x)


def computed(graph):
    compiled = network.core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shape = tuple(compiled.input(0).shape)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return compiled({"x": x})[0]


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("upsampled_convolutions", upsampled_convolution(5, 7)),  # odd sides: every border is a different case
        ("upsampled_convolutions", upsampled_convolution(1, 1)),  # only borders
        ("group_norms", group_norm()),
        ("group_norms", group_norm(channels=8, groups=8)),  # one channel a group
        ("group_norms", group_norm(channels=8, groups=1)),
        ("group_norms", group_norm(offset=30.0)),  # a mean far from zero: squares would cancel
    ],
)
def test_rewrites_keep_the_values(name, graph, monkeypatch):
    monkeypatch.setattr(rewrites, "_LARGE", 1)
    expected = computed(graph.clone())
    assert apply_rewrites(graph, [name]) == {name: 1}
    np.testing.assert_allclose(computed(graph), expected, atol=2e-5)


@pytest.mark.parametrize(
    "graph",
    [
        upsampled_convolution(4, 4, stride=2),
        upsampled_convolution(4, 4, side=1, padding=0),
        upsampled_convolution(4, 4, padding=0),
        group_norm(),  # small: its own kernel is faster
    ],
)
def test_other_graphs_stay_as_they_are(graph):
    assert set(apply_rewrites(graph, REWRITES).values()) == {0}


def test_group_norms_of_eight_bits_are_rewritten_at_smaller_sizes(monkeypatch):
    """Their layout changes twice, once on each side."""
    monkeypatch.setattr(rewrites, "_LARGE_IN_EIGHT_BITS", 1)
    assert apply_rewrites(group_norm(), ["group_norms"]) == {"group_norms": 0}
    graph = group_norm()
    result = graph.get_results()[0].input(0)
    low, high = (ops.constant(np.float32(end)) for end in (-4, 4))
    result.replace_source_output(ops.fake_quantize(result.get_source_output(), low, high, low, high, 256).output(0))
    assert apply_rewrites(graph, ["group_norms"]) == {"group_norms": 1}


def test_other_kinds_of_upsampling_stay():
    for options in ({"scale": 3.0}, {"mode": "linear"}, {"rounding": "ceil"}):
        x = parameter(1, 4, 6, 6)
        graph = model(convolved(doubled(x, **options), 4, 4), x)
        assert apply_rewrites(graph, REWRITES)["upsampled_convolutions"] == 0


def test_the_environment_disables_rewrites(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "shared_guidance,upsampled_convolutions")
    assert enabled_rewrites() == ["group_norms"]


def test_quantized_weights_stay_quantized_where_sizes_are_folded():
    """As floats they would be slow, and still inexact."""
    x = parameter(-1, 6)
    weights = RNG.integers(-127, 128, (6, 16)).astype(np.int8)
    scaled = ops.multiply(ops.convert(ops.constant(weights), np.float32), ops.constant(np.float32(0.02)))
    graph = model(ops.matmul(x, scaled, False, False), x)
    small = sized(graph, {"x": (3, 6)})
    assert "i8" in element_types(small)
    (constant,) = (n for n in small.get_ops() if n.get_type_name() == "Constant" and len(n.get_output_shape(0)) == 2)
    np.testing.assert_array_equal(constant.data, weights)
    expected = np.random.default_rng(1).standard_normal((3, 6)) @ (weights * 0.02)
    np.testing.assert_allclose(computed(small), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 arithmetic",
)
@pytest.mark.parametrize(("heads", "tokens", "keys"), [(4, 4, 4), (4, 4, 77), (8, 8, 8), (20, 20, 20), (4, 9, 4)])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_of_as_many_tokens_as_heads(batch, heads, tokens, keys):
    """Without the rewrite, OpenVINO's error is as large as the values."""
    width = 32
    places = [ops.parameter([batch, n, heads * width], np.float32) for n in (tokens, keys, keys)]
    split = [
        ops.transpose(ops.reshape(x, integers(batch, -1, heads, width), False), integers(0, 2, 1, 3)) for x in places
    ]
    scores = ops.matmul(ops.multiply(split[0], ops.constant(np.float32(width**-0.5))), split[1], False, True)
    mixed = ops.matmul(ops.softmax(scores, -1), split[2], False, False)
    joined = ops.reshape(ops.transpose(mixed, integers(0, 2, 1, 3)), integers(batch, tokens, -1), False)
    graph = ov.Model([ops.result(joined)], places, "attention")
    values = [RNG.standard_normal(tuple(x.get_shape())).astype(np.float32) for x in places]

    q, k, v = (x.reshape(batch, -1, heads, width).transpose(0, 2, 1, 3).astype(np.float64) for x in values)
    weights = np.exp(q @ k.swapaxes(2, 3) * width**-0.5)
    expected = (weights / weights.sum(-1, keepdims=True)) @ v
    apply_rewrites(graph, [])
    request = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).create_infer_request()
    for _ in range(5):
        got = next(iter(request.infer(values).values()))
        np.testing.assert_allclose(got, expected.transpose(0, 2, 1, 3).reshape(got.shape), atol=0.03)
