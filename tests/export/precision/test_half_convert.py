"""Half precision of a graph: consistent types, and the results of real half-precision arithmetic.

ONNX Runtime's CPU provider cannot check this (it has no bf16, and skips the rounding of fp16), so ONNX's reference
evaluator runs the lowered graphs: it computes in the types of the file.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from calotype.backends import LoadedComponent
from calotype.backends.torch.modules import load_module
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.export.precision.half_convert import lower
from calotype.export.precision.keep_fp32 import find_islands
from calotype.plan.family import folder_of

WITHIN = {"fp16": 3e-3, "bf16": 3e-2}
HALF = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
FLOAT = onnx.TensorProto.FLOAT


def written(folder: Path, text: str, opset: int = 21, **weights) -> Path:
    """Write a graph from ONNX's text form, with these initializers, as a file with external data."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return folder / "model.onnx"


def checked(path: Path) -> onnx.ModelProto:
    """Check the file with ONNX's checker and strict type inference, and return the inferred model."""
    onnx.checker.check_model(path, full_check=True)
    inferred = path.with_name("inferred.onnx")
    onnx.shape_inference.infer_shapes_path(path, inferred, check_type=True, strict_mode=True, data_prop=True)
    return onnx.load(inferred, load_external_data=False)


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {t.name: t.data_type for t in graph.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def off(got, expected) -> float:
    """Relative L2."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def same_in_half(source: Path, out: Path, feeds, precision: str) -> None:
    """Check that the lowered file returns nearly the same results with the same types, in half arithmetic."""
    expected = onnxruntime.InferenceSession(source).run(None, feeds)
    got = ReferenceEvaluator(str(out)).run(None, feeds)
    for g, w in zip(got, expected, strict=True):
        assert g.dtype == w.dtype
        assert off(g, w) <= WITHIN[precision]
    if precision == "fp16":
        onnxruntime.InferenceSession(out).run(None, feeds)


@pytest.fixture(params=["fp16", "bf16"])
def precision(request) -> str:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def floats(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def test_a_weight_with_readers_in_both_precisions_is_stored_in_both(tmp_path, precision, rng):
    source = written(
        tmp_path,
        """g (float[n, 8] x) => (float[n, 8] y, float[n, 8] z)
        { [a] h = MatMul(x, w) [b] y = Relu(h) [c] z = MatMul(h, w) }""",
        w=floats(rng, 8, 8),
    )
    report = lower(source, tmp_path / "half" / "model.onnx", precision=precision, islands=["c"])
    model = checked(tmp_path / "half" / "model.onnx")
    kinds = types(model)
    assert {kinds[node(model, n).input[1]] for n in ("a", "c")} == {FLOAT, HALF[precision]}
    assert (report.lowered, dict(report.islands)) == (2, {"c": "requested"})
    assert kinds["z"] == kinds["y"] == FLOAT  # an output of an island, and one that is cast
    same_in_half(source, tmp_path / "half" / "model.onnx", {"x": floats(rng, 3, 8)}, precision)


def test_a_tensor_read_in_both_precisions_is_cast_once(tmp_path, precision, rng):
    source = written(
        tmp_path,
        """g (float[n, 8] x) => (float[n, 8] y, float[n, 8] h)
        { [a] h = Sigmoid(x) [b] p = Exp(h) [c] q = Tanh(h) [d] r = Cos(h) [e] s = Sum(p, q, r) [f] y = Add(s, h) }""",
    )
    out = tmp_path / "half" / "model.onnx"
    report = lower(source, out, precision=precision, islands=["b", "c"])
    model = checked(out)
    # x down; h up, for b, c and the output together; b's and c's results down; y up
    assert report.casts == sum(n.op_type == "Cast" for n in model.graph.node) == 5
    assert [o.name for o in model.graph.output] == ["y", "h"]
    same_in_half(source, out, {"x": floats(rng, 3, 8)}, precision)


def test_tensors_that_are_not_float_keep_their_types(tmp_path, precision, rng):
    source = written(
        tmp_path,
        """g (float[n, 4] x, int64[n] ids, bool[n, 4] mask)
        => (float[n, 4] y, int64 peak, bool[n, 4] low, float[n, 4] z)
        {
            [embed] e = Gather(table, ids)
            [one] one = Constant <value_float = 1.5> ()
            [two] two = Constant <value = float[2] {0.5, 0.25}> ()
            [doubled] doubled = Concat <axis = 0> (two, two)
            [where] w = Where(mask, e, one)
            [size] s = Shape(w)
            [fill] f = ConstantOfShape <value = float[1] {3}> (s)
            [zeros] o = ConstantOfShape(s)
            [sum] y = Sum(w, f, x, o, doubled)
            [real] count = Cast <to = 1> (ids)
            [last] last = Constant <value_ints = [1]> ()
            [tall] tall = Unsqueeze(count, last)
            [scaled] z = Mul(tall, y)
            [integer] integer = Cast <to = 7> (z)
            [peak] peak = ReduceMax <keepdims = 0> (integer)
            [low] low = Less(y, x)
            [unused] none = Identity(mask)
        }""",
        table=floats(rng, 6, 4),
    )
    out = tmp_path / "half" / "model.onnx"
    report = lower(source, out, precision=precision, islands=["scaled"])
    model = checked(out)
    kinds = types(model)
    assert kinds["w"] == kinds["f"] == kinds["o"] == HALF[precision]
    assert set(report.islands) == {"scaled"}
    feeds = {"x": floats(rng, 3, 4), "ids": np.array([0, 5, 2]), "mask": rng.random((3, 4)) < 0.5}
    expected = onnxruntime.InferenceSession(source).run(["y", "z"], feeds)
    got = ReferenceEvaluator(str(out)).run(["y", "z"], feeds)
    assert max(map(off, got, expected)) <= WITHIN[precision]
    assert node(model, "fill").attribute[0].t.data_type == HALF[precision]


def test_resizing_keeps_its_scales(tmp_path, precision, rng):
    source = written(
        tmp_path,
        """g (float[1, 2, h, w] x) => (float[1, 2, a, b] y)
        {
            [up] y = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, scales)
        }""",
        roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    out = tmp_path / "half" / "model.onnx"
    assert lower(source, out, precision=precision, islands=[]).lowered == 1
    model = checked(out)
    assert [types(model)[name] for name in node(model, "up").input] == [HALF[precision], FLOAT, FLOAT]


def test_operators_without_half_precision_stay_and_have_a_reason(tmp_path, precision):
    source = written(
        tmp_path,
        """g (float x, float[n] v) => (float[m] y, float[n] z) <float[n] g>
        {
            [range] r = Range(zero, x, one)
            [double] y = Mul(r, two)
            [fast] g = com.microsoft.FastGelu(v)
            [more] z = Add(g, two)
        }""",
        zero=np.float32(0),
        one=np.float32(1),
        two=np.float32(2),
    )
    out = tmp_path / "half" / "model.onnx"
    report = lower(source, out, precision=precision, islands=())
    assert precision in report.islands["range"]
    assert "FastGelu" in report.islands["fast"]
    assert report.lowered == 2
    onnx.checker.check_model(out)


def test_norms_take_their_scales_along(tmp_path, precision, rng):
    source = written(
        tmp_path,
        """g (float[n, 8, h, w] x) => (float[n, 8, h, w] z, float[n, 1, 1, 1] mean)
        {
            [group] y = GroupNormalization <num_groups = 2> (x, scale, bias)
            [layer] z, mean, inverse = LayerNormalization <axis = 1> (y, wide, wide)
        }""",
        scale=floats(rng, 8),
        bias=floats(rng, 8),
        wide=floats(rng, 8, 4, 4),
    )
    out = tmp_path / "half" / "model.onnx"
    lower(source, out, precision=precision, islands=[])
    model = checked(out)
    assert {types(model)[i] for i in node(model, "group").input} == {HALF[precision]}
    assert types(model)["mean"] == FLOAT  # that is what stash_type 1 says
    assert find_islands(source, [{"x": floats(rng, 1, 8, 4, 4)}], precision=precision) == {}


def test_a_constant_that_does_not_fit_keeps_its_node_in_float32(tmp_path, rng):
    source = written(
        tmp_path,
        """g (float[n, 4] x) => (float[n, 4] y)
        { [down] a = Mul(x, tiny) [up] b = Mul(a, large) [all] y = Add(b, endless) }""",
        tiny=np.float32(1e-9),
        large=np.array([1e9, 1, 1, 1], np.float32),
        endless=np.array([-np.inf, 0, 1, 6e4], np.float32),
    )
    report = lower(source, tmp_path / "half" / "model.onnx", precision="fp16", islands=[])
    assert "tiny" in report.islands["down"]
    assert "65504" in report.islands["up"]
    assert report.lowered == 1  # every type has infinity
    assert lower(source, tmp_path / "bf16" / "model.onnx", precision="bf16", islands=[]).lowered == 3


def test_graphs_that_cannot_be_lowered_are_rejected(tmp_path):
    plain = "g (float[n] x) => (float[n] y) { [a] y = Relu(x) }"
    source = written(tmp_path, plain)
    with pytest.raises(InputError, match="'fp8'"):
        lower(source, tmp_path / "x", precision="fp8", islands=[])
    with pytest.raises(InputError, match="'b'"):
        lower(source, tmp_path / "x", precision="fp16", islands=["a", "b"])
    with pytest.raises(InputError, match="is the source"):
        lower(source, source, precision="fp16", islands=[])
    inner = """g (float[n] x, bool c) => (float[n] y)
    {
        [if] y = If <
            then_branch = t () => (float[n] p) { p = Relu(x) }, else_branch = e () => (float[n] q) { q = Abs(x) }
        > (c)
    }"""
    with pytest.raises(SourceError, match=r"if \(If\)"):
        lower(written(tmp_path, inner), tmp_path / "x", precision="fp16", islands=[])
    old = written(tmp_path, plain, opset=17)
    with pytest.raises(SourceError, match="opset 21"):
        lower(old, tmp_path / "x", precision="bf16", islands=[])
    (tmp_path / "broken.onnx").write_bytes(b"\xff\xff")
    with pytest.raises(SourceError, match=r"broken\.onnx"):
        lower(tmp_path / "broken.onnx", tmp_path / "x", precision="fp16", islands=[])


@pytest.fixture(scope="module")
def recorded(pipe):
    """The inputs of the networks during a generation: component -> sets of inputs."""
    seen = {}
    run_component = LoadedComponent.run_with_fallback

    def record(self, run, inputs):
        seen.setdefault(self.component.name, []).append(dict(inputs()))
        return run_component(self, run, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadedComponent, "run_with_fallback", record)
        pipe("a large red circle on a blue background, a prompt without cached embeddings", steps=4, seed=1)
    return seen


def small(inputs):
    """Return inputs with fewer pixels: the reference evaluator is slow."""
    return {k: v[:, :, :4, :4] if v.ndim == 4 else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_the_demonstration_model_in_half_precision_is_near_eager_float32(
    name, precision, recorded, demo_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("calotype.export.onnx.file.INLINE_BYTES", 64)  # as if all of it were large
    source = prepare("demo").components[name].artifact("onnx").path
    islands = find_islands(source, recorded[name][:2], precision=precision)
    out = tmp_path / "model.onnx"
    report = lower(source, out, precision=precision, islands=islands)
    assert report.bytes_after < 0.62 * report.bytes_before
    assert report.lowered > 10 * len(report.islands)
    inside = [t for t in onnx.load(out, load_external_data=False).graph.initializer if t.data_location != 1]
    assert sum(t.ByteSize() for t in inside) < 4000  # shapes, axes and scalars
    feeds = small(recorded[name][-1])
    with torch.inference_mode():
        module = load_module(name, demo_folder / folder_of(name))
        expected = module(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    with np.errstate(all="ignore"):  # masks of CLIP
        got = ReferenceEvaluator(str(out)).run(None, feeds)
    assert max(map(off, got, expected)) <= WITHIN[precision]
    if precision == "fp16":
        onnxruntime.InferenceSession(out).run(None, feeds)


def test_the_demonstration_models_bindings_and_types_hold(precision, tmp_path):
    for component in prepare("demo").components.values():
        source, out = component.artifact("onnx").path, tmp_path / component.name / "model.onnx"
        lower(source, out, precision=precision, islands=[])
        before, after = onnx.load(source, load_external_data=False), checked(out)
        for side in ("input", "output"):
            kept = [(v.name, v.type) for v in getattr(before.graph, side)]
            assert [(v.name, v.type) for v in getattr(after.graph, side)] == kept
