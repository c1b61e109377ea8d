"""Rewritten graphs give the numbers of the graphs that they were made from, and leave alone what is something else."""

import numpy as np
import pytest

from calotype.backends.openvino import rewrites as vino_rewrites
from calotype.backends.openvino import runner as vino
from calotype.backends.openvino.graph import element_types, sized
from calotype.backends.openvino.rewrites import DISABLE_VARIABLE, REWRITES, apply_rewrites, enabled_rewrites

ov = vino.library()
ops = ov.opset13
RNG = np.random.default_rng(0)


def numbers(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def parameter(*shape):
    made = ops.parameter(list(shape), np.float32, name="x")
    made.output(0).set_names({"x"})
    return made


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


def upsampled(height, width, **said):
    x = parameter(2, 5, height, width)
    return model(convolved(doubled(x), 7, 5, **said), x)


def gated(axis=-1):
    x = parameter(2, 9, 6)
    added = ops.add(ops.matmul(x, ops.constant(numbers(6, 16)), False, False), ops.constant(numbers(1, 1, 16)))
    first, second = ops.split(added, ops.constant(np.int64(axis)), 2).outputs()
    return model(ops.multiply(first, ops.gelu(second, "erf")), x)


def normed(channels=12, groups=3, offset=0.0):
    x = parameter(2, channels, 5, 7)
    shifted = ops.add(x, ops.constant(np.float32(offset)))
    scale, shift = (ops.constant(numbers(channels)) for _ in range(2))
    return model(ops.group_normalization(shifted, scale, shift, groups, 1e-5), x)


def computed(graph):
    compiled = vino._core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shape = tuple(compiled.input(0).shape)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return compiled({"x": x})[0]


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("upsampled_convolutions", upsampled(5, 7)),  # odd sides: every border is another case
        ("upsampled_convolutions", upsampled(1, 1)),  # nothing but borders
        ("gated_linears", gated()),
        ("group_norms", normed()),
        ("group_norms", normed(channels=8, groups=8)),  # one channel a group
        ("group_norms", normed(channels=8, groups=1)),
        ("group_norms", normed(offset=30.0)),  # a mean far from zero: squares would cancel
    ],
)
def test_the_numbers_stay(name, graph, monkeypatch):
    monkeypatch.setattr(vino_rewrites, "_LARGE", 1)
    wanted = computed(graph.clone())
    assert apply_rewrites(graph, [name]) == {name: 1}
    np.testing.assert_allclose(computed(graph), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "graph",
    [
        upsampled(4, 4, stride=2),
        upsampled(4, 4, side=1, padding=0),
        upsampled(4, 4, padding=0),
        normed(),  # small: its own kernel is faster
    ],
)
def test_what_is_something_else_stays_as_it_is(graph):
    assert set(apply_rewrites(graph, REWRITES).values()) == {0}


def test_group_norms_of_eight_bits_are_rewritten_sooner(monkeypatch):
    """They are put into another layout twice, once on each side."""
    monkeypatch.setattr(vino_rewrites, "_LARGE_IN_EIGHT_BITS", 1)
    assert apply_rewrites(normed(), ["group_norms"]) == {"group_norms": 0}
    graph = normed()
    result = graph.get_results()[0].input(0)
    low, high = (ops.constant(np.float32(end)) for end in (-4, 4))
    result.replace_source_output(ops.fake_quantize(result.get_source_output(), low, high, low, high, 256).output(0))
    assert apply_rewrites(graph, ["group_norms"]) == {"group_norms": 1}


def test_other_ways_of_making_larger_stay():
    for said in ({"scale": 3.0}, {"mode": "linear"}, {"rounding": "ceil"}):
        x = parameter(1, 4, 6, 6)
        graph = model(convolved(doubled(x, **said), 4, 4), x)
        assert apply_rewrites(graph, REWRITES)["upsampled_convolutions"] == 0


def test_what_the_environment_leaves_out(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "gated_linears,upsampled_convolutions")
    assert enabled_rewrites() == ["group_norms"]


def test_quantized_weights_stay_quantized_where_sizes_are_folded():
    """In float they would cost what floats cost, and have lost what integers lose."""
    x = parameter(-1, 6)
    weights = RNG.integers(-127, 128, (6, 16)).astype(np.int8)
    scaled = ops.multiply(ops.convert(ops.constant(weights), np.float32), ops.constant(np.float32(0.02)))
    graph = model(ops.matmul(x, scaled, False, False), x)
    small = sized(graph, {"x": (3, 6)})
    assert "i8" in element_types(small)
    (kept,) = (n for n in small.get_ops() if n.get_type_name() == "Constant" and len(n.get_output_shape(0)) == 2)
    np.testing.assert_array_equal(kept.data, weights)
    wanted = np.random.default_rng(1).standard_normal((3, 6)) @ (weights * 0.02)
    np.testing.assert_allclose(computed(small), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 arithmetic",
)
@pytest.mark.parametrize(("heads", "tokens", "keys"), [(4, 4, 4), (4, 4, 77), (8, 8, 8), (20, 20, 20), (4, 9, 4)])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_of_as_many_tokens_as_heads(batch, heads, tokens, keys):
    """OpenVINO alone is wrong here by as much as the numbers themselves."""
    width = 32
    places = [ops.parameter([batch, n, heads * width], np.float32) for n in (tokens, keys, keys)]
    parted = [
        ops.transpose(ops.reshape(x, integers(batch, -1, heads, width), False), integers(0, 2, 1, 3)) for x in places
    ]
    scores = ops.matmul(ops.multiply(parted[0], ops.constant(np.float32(width**-0.5))), parted[1], False, True)
    mixed = ops.matmul(ops.softmax(scores, -1), parted[2], False, False)
    joined = ops.reshape(ops.transpose(mixed, integers(0, 2, 1, 3)), integers(batch, tokens, -1), False)
    graph = ov.Model([ops.result(joined)], places, "attention")
    given = [RNG.standard_normal(tuple(x.get_shape())).astype(np.float32) for x in places]

    q, k, v = (x.reshape(batch, -1, heads, width).transpose(0, 2, 1, 3).astype(np.float64) for x in given)
    weights = np.exp(q @ k.swapaxes(2, 3) * width**-0.5)
    wanted = (weights / weights.sum(-1, keepdims=True)) @ v
    apply_rewrites(graph, [])
    request = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).create_infer_request()
    for _ in range(5):
        got = next(iter(request.infer(given).values()))
        np.testing.assert_allclose(got, wanted.transpose(0, 2, 1, 3).reshape(got.shape), atol=0.03)
