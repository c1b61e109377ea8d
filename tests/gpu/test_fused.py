"""Fused networks compared with the same networks without kernels: tiny ones with random weights."""

import copy

import diffusers
import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from calotype.backends.torch.modules import TextEncoder, UNet, VaeDecoder, VaeEncoder
from calotype.backends.torch.weights import fused_weights, layers_of
from calotype.cuda.fused.fuse import fuse
from calotype.cuda.step_cache import StepInvariant, StepValues
from calotype.system.switches import DISABLE_VARIABLE, OF_CUDA
from calotype.weights.delta import LowRankTerm, WeightDelta, WeightDeltas

COMMON = {"sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}


def unet(**settings) -> nn.Module:
    """Return a small U-Net."""
    return UNet(
        diffusers.UNet2DConditionModel(cross_attention_dim=24, attention_head_dim=4, **COMMON, **BLOCKS, **settings)
    )


def vae() -> diffusers.AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(latent_channels=4, **COMMON, **blocks)


def tiny() -> diffusers.AutoencoderTiny:
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return diffusers.AutoencoderTiny(num_encoder_blocks=(1, 3), num_decoder_blocks=(3, 1), **sizes)


def text() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return TextEncoder(CLIPTextModel(CLIPTextConfig(vocab_size=99, max_position_embeddings=7, **sizes)))


def of_unet(**more):
    times = torch.tensor([1.0, 999.0])
    return {
        "sample": torch.randn(2, 4, 4, 6),
        "timestep": times,
        "encoder_hidden_states": torch.randn(2, 7, 24),
        **more,
    }


def image_prompts():
    """Two groups of image tokens, the second with one token less, for layers of 32, 32, 32 and 64 channels."""
    bias = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1e4]])
    return {
        "image_states": torch.randn(2, 2, 3, 2 * (3 * 32 + 64)),
        "image_bias": bias.repeat(2, 1, 1),
        "image_scale": torch.randn(2, 2, 4),
        "image_mask": torch.rand(2, 2, 4, 6),
        "image_mask_2": torch.rand(2, 2, 2, 3),
    }


NETWORKS = {
    "U-Net": (unet, of_unet),
    "U-Net of SDXL": (
        lambda: unet(**XL),
        lambda: of_unet(text_embeds=torch.randn(2, 24), time_ids=torch.randn(2, 6).abs() * 99),
    ),
    "U-Net with image prompts": (unet, lambda: of_unet(**image_prompts())),
    "U-Net of one style, with attention skipped": (
        unet,
        lambda: of_unet(style_offset=torch.tensor([0, -1]), attention_skip_mid_0=torch.tensor([0.0, 1.0])),
    ),
    "VAE decoder": (lambda: VaeDecoder(vae()), lambda: {"latent_sample": torch.randn(1, 4, 4, 6)}),
    "VAE encoder": (lambda: VaeEncoder(vae()), lambda: {"sample": torch.randn(1, 3, 8, 12)}),
    "tiny decoder": (lambda: VaeDecoder(tiny()), lambda: {"latent_sample": torch.randn(1, 4, 4, 6)}),
    "tiny encoder": (lambda: VaeEncoder(tiny()), lambda: {"sample": torch.randn(1, 3, 8, 12)}),
    "text encoder": (text, lambda: {"input_ids": torch.arange(14).reshape(2, 7)}),
}
UNET = {
    **{"DownBlock": 2, "UpBlock": 2, "MiddleBlock": 1, "FusedResnet": 8, "FusedTransformer2D": 4},
    **{"FusedTransformerBlock": 4, "FusedAttention": 8, "FusedGeglu": 4, "FusedGroupNorm": 21, "FusedLayerNorm": 12},
}
REPLACED = {
    "U-Net": UNET | {"DirectConvolution": 33},
    "U-Net of SDXL": UNET | {"DirectConvolution": 25},
    "U-Net with image prompts": UNET | {"DirectConvolution": 33},
    "U-Net of one style, with attention skipped": UNET | {"DirectConvolution": 33},
    "VAE decoder": {
        **{"MiddleBlock": 1, "AutoencoderBlock": 2, "FusedResnet": 6, "FusedImageAttention": 1, "FusedAttention": 1},
        **{"FusedGroupNorm": 14, "DirectConvolution": 17},
    },
    "VAE encoder": {
        **{"MiddleBlock": 1, "AutoencoderBlock": 2, "FusedResnet": 4, "FusedImageAttention": 1, "FusedAttention": 1},
        **{"FusedGroupNorm": 10, "DirectConvolution": 13},
    },
    "tiny decoder": {"ConvolutionRelu": 13, "FusedTinyBlock": 4, "DirectConvolution": 15},
    "tiny encoder": {"ConvolutionRelu": 12, "FusedTinyBlock": 4, "DirectConvolution": 15},
    "text encoder": {"FusedLayerNorm": 5},
}
KEPT_WIDE = ("timestep", "time_ids")


def fused_pair(name, device):
    """Return a network, its fused copy and what was replaced. Norms scale and shift, as trained ones do."""
    torch.manual_seed(3)
    plain = NETWORKS[name][0]().eval().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    fused = copy.deepcopy(plain)
    replaced = fuse(fused)
    return plain.to(device), fused.to(device), replaced


def run(network, inputs, dtype, device):
    cast = {
        n: t.to(device, dtype) if t.is_floating_point() and n not in KEPT_WIDE else t.to(device)
        for n, t in inputs.items()
    }
    with torch.inference_mode():
        return [t.double().cpu() for t in network.to(dtype)(**cast)]


def relative_error(got, expected) -> float:
    return max(float((g - w).norm() / w.norm()) for g, w in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_network_computes(name, device, request):
    """Two networks with every kernel in the interpreter, the others by the kernels' formulas."""
    if name not in ("U-Net of SDXL", "text encoder"):
        request.getfixturevalue("references")
    plain, fused, replaced = fused_pair(name, device)
    assert dict(replaced) == REPLACED[name]
    inputs = NETWORKS[name][1]()
    truth = run(plain, inputs, torch.float64, device)
    wide = relative_error(run(fused, inputs, torch.float32, device), truth)
    assert wide <= 2 * max(1e-6, relative_error(run(plain, inputs, torch.float32, device), truth))
    half = relative_error(run(fused, inputs, torch.bfloat16, device), truth)
    assert half <= 2 * relative_error(run(plain, inputs, torch.bfloat16, device), truth)


def test_a_precomputed_schedule_equals_its_calls(device, references):
    """Inside the block, the timestep and text of a call have no effect: those of the schedule are used."""
    plain, fused, _ = fused_pair("U-Net of SDXL", device)
    inputs = NETWORKS["U-Net of SDXL"][1]()
    steering = {n: t.to(device) for n, t in inputs.items() if n not in ("sample", "timestep")}
    times = torch.tensor([[999.0, 500.5], [500.5, 20.0]])  # rows of a batch at different steps
    expected = run(plain, inputs | {"timestep": times[1]}, torch.float32, device)
    other = inputs | {"encoder_hidden_states": torch.randn(2, 7, 24)}
    with torch.inference_mode():
        values = StepValues(fused, times.to(device), steering, torch.float32)
        with values.at(1):
            assert relative_error(run(fused, other, torch.float32, device), expected) <= 2e-6
    assert {m.cached for m in fused.modules() if isinstance(m, StepInvariant)} == {None}


def test_a_session_computes_no_timestep_embedding(device, references):
    """Its layers are not called; outside of the block they are."""
    _, fused, _ = fused_pair("U-Net of SDXL", device)
    inputs = {n: t.to(device) for n, t in NETWORKS["U-Net of SDXL"][1]().items()}
    calls = []
    for layer in (fused.model.time_embedding.linear_1, fused.model.add_embedding.linear_1):
        layer.register_forward_hook(lambda *_: calls.append(1))
    steering = {n: t for n, t in inputs.items() if n not in ("sample", "timestep")}
    with torch.inference_mode():
        values = StepValues(fused, inputs["timestep"][None], steering, torch.float32)
        calls.clear()
        with values.at(0):
            inside = fused(**inputs)
        assert calls == []
        outside = fused(**inputs)
    assert len(calls) == 2
    assert relative_error(inside, outside) <= 2e-6


def test_sessions_that_take_turns_have_their_own_values(device, references):
    """They share the modules."""
    plain, fused, _ = fused_pair("U-Net", device)
    inputs, texts = NETWORKS["U-Net"][1](), [torch.randn(2, 7, 24) for _ in range(2)]
    expected = [run(plain, inputs | {"encoder_hidden_states": text}, torch.float32, device) for text in texts]
    times = inputs["timestep"][None].to(device)
    with torch.inference_mode():
        constants = [{"encoder_hidden_states": text.to(device)} for text in texts]
        sessions = [StepValues(fused, times, each, torch.float32) for each in constants]
        for i in (0, 1, 0):
            with sessions[i].at(0):
                assert relative_error(run(fused, inputs, torch.float32, device), expected[i]) <= 2e-6


def test_weights_keep_their_names_and_change_in_place(device):
    """Every layer's weight, also rows of a packed one, is restored bit for bit."""
    plain, _, _ = fused_pair("U-Net", device)
    torch.manual_seed(3)
    fused = copy.deepcopy(plain)
    layers = layers_of(fused)
    fuse(fused)
    weights = fused_weights(layers, fused)
    assert weights.shapes() == {name: tuple(layer.weight.shape) for name, layer in layers_of(plain).items()}
    before = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    names = [n for n in weights.shapes() if n.endswith(("to_k", "conv1", "ff.net.0.proj"))][:6]
    terms = {}
    for name in names:
        out, *into = weights.shapes()[name]
        term = LowRankTerm(
            up=torch.randn(out, 2).numpy(), down=torch.randn(2, *into).flatten(1).numpy(), middle=None, scale=0.5
        )
        terms[f"{name}.weight"] = WeightDelta(terms=(term,))
        layer = plain.get_submodule(f"model.{name}")
        layer.weight.data += torch.from_numpy(term.delta()).reshape(layer.weight.shape).to(device)
    weights.update_weights(WeightDeltas(patches=terms, key="some"))
    fuse(plain)
    changed = fused.state_dict()
    assert all(torch.equal(tensor, changed[name]) for name, tensor in plain.state_dict().items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in changed.items())
    weights.update_weights(WeightDeltas())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())


def test_no_weight_is_kept_twice(device):
    """Biases may be: of a chain of norms, each adds the sum of those before it."""
    _, fused, _ = fused_pair("U-Net", device)
    plain = NETWORKS["U-Net"][0]()
    sizes = [sum(p.numel() for p in network.parameters() if p.ndim > 1) for network in (fused, plain)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["U-Net of SDXL", "VAE decoder", "tiny decoder"])
@pytest.mark.parametrize("piece", [*OF_CUDA, ",".join(OF_CUDA)])
def test_each_optimization_can_be_left_out(name, piece, device, references, monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, piece)
    plain, fused, _ = fused_pair(name, device)
    inputs = NETWORKS[name][1]()
    truth = run(plain, inputs, torch.float64, device)
    limit = 2 * max(1e-6, relative_error(run(plain, inputs, torch.float32, device), truth))
    assert relative_error(run(fused, inputs, torch.float32, device), truth) <= limit


def test_inputs_of_a_network_do_not_change(device, references):
    """Products add in place, but only to tensors of their own."""
    for name in ("U-Net", "VAE decoder"):
        _, fused, _ = fused_pair(name, device)
        inputs = {n: t.to(device) for n, t in NETWORKS[name][1]().items()}
        before = {n: t.clone() for n, t in inputs.items()}
        with torch.inference_mode():
            first, second = fused(**inputs)[0], fused(**inputs)[0]
        assert all(torch.equal(inputs[n], t) for n, t in before.items())
        assert torch.equal(first, second)


def test_the_residuals_of_controlnets_and_adapters_are_added(device, references):
    plain, fused, _ = fused_pair("U-Net", device)
    inputs = {n: t.to(device) for n, t in NETWORKS["U-Net"][1]().items()}
    sizes = [(32, 4, 6), (32, 4, 6), (32, 2, 3), (64, 2, 3)]
    inputs |= {f"down_block_residual.{i}": torch.randn(2, *size).to(device) for i, size in enumerate(sizes)}
    inputs["mid_block_additional_residual"] = torch.randn(2, 64, 2, 3).to(device)
    with torch.inference_mode():
        assert relative_error([fused(**inputs)[0]], [plain(**inputs)[0]]) <= 1e-5
        adapted = [torch.randn(2, 32, 4, 6).to(device), torch.randn(2, 64, 2, 3).to(device)]
        sample, timestep, text = (inputs[n] for n in ("sample", "timestep", "encoder_hidden_states"))
        outputs = [
            network.model(sample, timestep, text, down_intrablock_additional_residuals=list(adapted))[0]
            for network in (fused, plain)
        ]
    assert relative_error([outputs[0]], [outputs[1]]) <= 1e-5


def test_modules_that_no_rule_supports_stay():
    settings = {"in_channels": 8, "temb_channels": 4, "groups": 2}
    known = diffusers.models.resnet.ResnetBlock2D(**settings)
    others = [
        diffusers.models.resnet.ResnetBlock2D(**settings, **other)
        for other in ({"time_embedding_norm": "scale_shift"}, {"up": True}, {"non_linearity": "gelu"})
    ]

    class Own(nn.LayerNorm):
        pass

    holder = nn.ModuleList([known, *others, Own(8), nn.LayerNorm((2, 8)), nn.LayerNorm(8, bias=False)])
    replaced = fuse(holder)
    assert replaced["FusedResnet"] == 1
    assert replaced["FusedLayerNorm"] == 0
    assert [type(m) for m in holder[1:]] == [diffusers.models.resnet.ResnetBlock2D] * 3 + [Own] + [nn.LayerNorm] * 2
