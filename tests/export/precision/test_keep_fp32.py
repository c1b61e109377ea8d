"""Nodes that must stay in float32: planted overflows, angles, sizes and losses, identified by node."""

from pathlib import Path

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from calotype.backends.torch.modules import VaeDecoder
from calotype.errors import InputError
from calotype.export import prepare
from calotype.export.onnx.check import relative_error
from calotype.export.onnx.trace import trace
from calotype.export.precision import keep_fp32 as module
from calotype.export.precision.half_convert import lower
from calotype.export.precision.half_op_types import half_of
from calotype.export.precision.keep_fp32 import find_islands
from calotype.export.precision.rounding_error import losses
from calotype.plan.family import Component, family_of


@pytest.fixture(scope="module")
def decoder(pipe):
    """The demonstration model's VAE decoder, and its latents in a real run."""
    latents = pipe("a small green ring on a white background", steps=4, seed=5, output_type="latent").images
    feeds = [{"latent_sample": (latents / pipe.plan.scaling_factor).astype(np.float32)}]
    return prepare("demo").components["vae_decoder"].artifact("onnx").path, feeds


def scaled(source: Path, out: Path, factors: dict[str, float]) -> Path:
    """A copy of the graph with some of its weights multiplied."""
    model = ir.load(source)
    for name, factor in factors.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    out.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, out, external_data="model.onnx.data")
    return out


def run(path: Path, feeds):
    """Run the graph in the types of the file, with real half-precision arithmetic."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(str(path)).run(None, feeds)[0]


PLANTED = {  # the first before a Conv, the second before a norm that undoes it
    "node_conv2d": {
        "module.post_quant_conv.weight": 1e5,
        "module.post_quant_conv.bias": 1e5,
        "module.decoder.conv_in.weight": 1e-5,
    },
    "node_conv2d_6": {
        "module.decoder.up_blocks.0.resnets.0.conv1.weight": 2e4,
        "module.decoder.up_blocks.0.resnets.0.conv1.bias": 2e4,
    },
}


@pytest.mark.parametrize("node", PLANTED)
def test_a_planted_overflow_stays_in_float32(node, decoder, tmp_path):
    source, feeds = decoder
    planted = scaled(source, tmp_path / "planted" / "model.onnx", PLANTED[node])
    islands = find_islands(planted, feeds, precision="fp16")
    assert 1 <= len(islands) <= 4
    assert "65504" in islands[node]
    lower(planted, tmp_path / "half" / "model.onnx", precision="fp16", islands=islands)
    lower(planted, tmp_path / "bare" / "model.onnx", precision="fp16", islands=[])
    small = {"latent_sample": feeds[0]["latent_sample"][:, :, 6:8, 6:8]}
    expected = run(source, small)
    assert relative_error(run(tmp_path / "half" / "model.onnx", small), expected) < 5e-3
    assert relative_error(run(tmp_path / "bare" / "model.onnx", small), expected) == float("inf")
    loss = losses(planted, feeds, half_of("fp16"), islands, ["sample"])["sample"]
    assert 0 < loss < 1e-3
    assert find_islands(planted, feeds, precision="bf16") == {}  # bf16 has the range of float32


def test_a_healthy_network_has_no_islands(decoder):
    source, feeds = decoder
    for precision in ("fp16", "bf16"):
        assert find_islands(source, feeds, precision=precision) == {}


def test_an_autoencoder_like_sdxls_keeps_its_overflows_in_float32(tmp_path):
    """Its residual stream grows beyond the range of fp16: eager fp16 returns no image."""
    torch.manual_seed(0)
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 64,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }
    vae = diffusers.AutoencoderKL(**config).eval()
    with torch.no_grad():
        for block in vae.decoder.mid_block.resnets:
            block.conv2.weight *= 2e6
    eager = VaeDecoder(vae).eval().requires_grad_(False)
    latents = torch.randn(2, 4, 6, 8)
    expected = eager(latents)[0].numpy()
    assert np.isfinite(expected).all()
    component = sdxl_decoder(config)
    source = trace(component, eager, {"batch": 2, "latent_height": 4, "latent_width": 6}, tmp_path)
    feeds = {"latent_sample": latents.numpy()}
    islands = find_islands(source, [feeds], precision="fp16")
    assert any("65504" in reason for reason in islands.values())
    report = lower(source, tmp_path / "half" / "model.onnx", precision="fp16", islands=islands)
    assert report.lowered > len(report.islands)
    got = run(tmp_path / "half" / "model.onnx", feeds)
    assert relative_error(got, expected) < 5e-3
    with torch.inference_mode():
        assert not torch.isfinite(eager.half()(latents.half())[0]).all()


def sdxl_decoder(config) -> Component:
    unet = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 8, "block_out_channels": (8, 8)}
    unet |= {"down_block_types": ("DownBlock2D",) * 2, "attention_head_dim": 8, "sample_size": 32}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 77, "vocab_size": 9}
    index = {"_class_name": "StableDiffusionPipeline"}  # the decoder is the same in every family
    configs = {"text_encoder": text, "unet": unet, "vae": config, "model_index": index}
    return family_of(configs).components["vae_decoder"]


def graph(folder: Path, text: str) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
    return folder / "model.onnx"


def test_angles_and_sizes_stay_in_float32_with_everything_they_depend_on(tmp_path):
    source = graph(
        tmp_path,
        """g (float[n] t, float[m, 4] w) => (float[n, k] y, int64[1] integer)
        {
            two = Constant <value_floats = [2.0]> ()
            axes = Constant <value_ints = [1]> ()
            [column] c = Unsqueeze(t, axes)
            [angle] a = Mul(c, two)
            [sin] s = Sin(a)
            [cos] o = Cos(a)
            [cat] e = Concat <axis = 1> (s, o)
            [mean] e2 = ReduceMean <keepdims = 0> (w)
            [times] r = Mul(e2, two)
            [cast] integer = Cast <to = 7> (r)
            [project] y = MatMul(e, q)
        }""".replace("MatMul(e, q)", "Sigmoid(e)"),
    )
    feeds = [{"t": np.array([999, 257], np.float32), "w": np.ones((3, 4), np.float32)}]
    islands = find_islands(source, feeds, precision="bf16")
    assert set(islands) == {"column", "angle", "sin", "cos", "cat", "mean", "times", "cast"}
    assert "sine" in islands["column"]
    assert "index" in islands["mean"]


def test_norms_that_sum_in_half_are_kept(tmp_path):
    source = graph(
        tmp_path,
        """g (float[1, 4, h, w] x) => (float[1, 4, h, w] y)
        {
            s = Constant <value_floats = [1.0, 1.0, 1.0, 1.0]> ()
            [good] a = GroupNormalization <num_groups = 2> (x, s, s)
            [old] b = InstanceNormalization(a, s, s)
            [half] y = GroupNormalization <num_groups = 2, stash_type = 10> (b, s, s)
        }""",
    )
    feeds = [{"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)}]
    assert set(find_islands(source, feeds, precision="fp16")) == {"old", "half"}


CANCELS = """g (float[n, 16] x) => (float[n, 16] y)
{
    far = Constant <value_float = 3000.0> ()
    [first] a = Sigmoid(x)
    [there] b = Add(a, far)
    [back] c = Sub(b, far)
    [last] y = Mul(c, x)
}"""


def test_nodes_where_the_loss_rises_stay_in_float32(tmp_path):
    source = graph(tmp_path, CANCELS)
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)}]
    bare = losses(source, feeds, half_of("fp16"), {}, ["b", "c", "y"])
    assert bare["b"] < 1e-3 < module.BUDGET["fp16"] < bare["c"]
    islands = find_islands(source, feeds, precision="fp16")
    assert {"there", "back"} <= set(islands)
    assert "loss" in islands["back"]
    assert losses(source, feeds, half_of("fp16"), islands, ["y"])["y"] < 1e-3
    lower(source, tmp_path / "half" / "model.onnx", precision="fp16", islands=islands)
    expected = run(source, feeds[0])
    assert relative_error(run(tmp_path / "half" / "model.onnx", feeds[0]), expected) < 5e-3


def test_islands_that_do_not_help_are_not_kept(tmp_path, monkeypatch):
    source = graph(tmp_path, CANCELS)
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)}]
    monkeypatch.setattr(module._Search, "_worst", lambda *_: {"last": "a wrong guess"})
    assert find_islands(source, feeds, precision="fp16") == {}


def test_masks_beyond_the_range_stay_in_float32(pipe):
    """CLIP's mask has float32's largest number: the nodes that add it, and the softmax that removes it, are islands."""
    source = prepare("demo").components["text_encoder"].artifact("onnx").path
    feeds = [{"input_ids": np.arange(77, dtype=np.int64)[None]}]
    for precision in ("fp16", "bf16"):
        islands = find_islands(source, feeds, precision=precision)
        kinds = {n.name: n.op_type for n in ir.load(source).graph}
        assert {kinds[name] for name in islands} == {"Where", "Add", "Softmax"}


def test_rounding_is_that_of_the_reference_evaluator(decoder, tmp_path):
    """The measured loss has the magnitude of the loss of real half-precision arithmetic."""
    source, feeds = decoder
    small = [{"latent_sample": feeds[0]["latent_sample"][:, :, 6:8, 6:8]}]
    for precision in ("fp16", "bf16"):
        out = tmp_path / precision / "model.onnx"
        lower(source, out, precision=precision, islands=[])
        expected, got = run(source, small[0]), run(out, small[0])
        real = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        measured = losses(source, small, half_of(precision), {}, ["sample"])["sample"]
        assert real / 3 < measured < real * 3


def test_inputs_are_required(decoder):
    with pytest.raises(InputError, match="inputs"):
        find_islands(decoder[0], [], precision="fp16")
