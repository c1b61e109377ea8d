"""Tests of counted operations against counts by hand and published counts."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from calotype.benchmarks.suite.flops import component_flops, count, module_of
from calotype.errors import InputError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import read_source


def meta(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="meta")


def test_a_convolution_a_linear_layer_and_a_stride():
    with torch.device("meta"):
        assert count(nn.Conv2d(3, 5, 3, padding=1), input=meta(2, 3, 8, 6)) == 2 * (2 * 8 * 6) * 5 * (3 * 3 * 3)
        assert count(nn.Conv2d(3, 5, 3, stride=2, padding=1), input=meta(2, 3, 8, 6)) == 2 * (2 * 4 * 3) * 5 * 27
        assert count(nn.Conv2d(6, 4, 1, groups=2), input=meta(1, 6, 8, 8)) == 2 * 64 * 4 * 3
        assert count(nn.Linear(7, 11), input=meta(2, 9, 7)) == 2 * (2 * 9) * 7 * 11


def test_norms_and_activations_are_not_counted():
    with torch.device("meta"):
        rest = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Upsample(scale_factor=2))
        assert count(rest, input=meta(1, 8, 4, 4)) == 0


@pytest.mark.parametrize("device", ["meta", "cpu"])  # torch's counter sees no attention in the CPU's fused kernel
def test_an_attention_counts_both_products(device):
    batch, tokens, words, width, text = 2, 100, 7, 64, 48
    with torch.device(device):
        block = Attention(query_dim=width, cross_attention_dim=text, heads=4, dim_head=16)
        inputs = {"hidden_states": torch.zeros(batch, tokens, width)}
        inputs["encoder_hidden_states"] = torch.zeros(batch, words, text)
    projections = 2 * (2 * batch * tokens * width * width) + 2 * (2 * batch * words * text * width)
    products = 2 * (2 * batch * tokens * words * width)  # scores and weighted values of all heads
    assert count(block, **inputs) == projections + products


def unet_flops(name, side, *added):
    config = MODELS[name]["unet"][1]
    inputs = {"sample": meta(1, 4, side, side), "timestep": meta(1)}
    inputs["encoder_hidden_states"] = meta(1, 77, config["cross_attention_dim"])
    for what, width in added:
        inputs[what] = meta(1, width)
    module = module_of("unet", config)
    assert all(p.is_meta for p in module.parameters())
    return count(module, **inputs)


def attention_products(*levels):
    """Count the attention products of `count` transformer blocks, each with itself and with 77 words."""
    return sum(n * 4 * width * (tokens * tokens + tokens * 77) for n, width, tokens in levels)


def test_sd15_unet_matches_the_published_count():
    total = unet_flops("sd15", 64)
    products = attention_products((5, 320, 4096), (5, 640, 1024), (5, 1280, 256), (1, 1280, 64))
    assert total == 803_273_441_280
    # Kim et al. 2023 (BK-SDM, arXiv 2305.15798) count 338.7 G multiply-adds, by layers: without the two products.
    assert total - products == pytest.approx(2 * 338.7e9, rel=1e-3)


def test_sdxl_unet_matches_the_published_count():
    total = unet_flops("sdxl", 128, ("text_embeds", 1280), ("time_ids", 6))
    products = attention_products((10, 640, 4096), (60, 1280, 1024))
    assert total == pytest.approx(6.76e12, rel=1e-3)
    assert total - products == pytest.approx(5.98e12, rel=1e-3)  # "about 6 TFLOP"


def test_a_clip_text_encoder_matches_the_published_count():
    encoder = module_of("text_encoder", MODELS["sd15"]["text_encoder"][1])
    counted = count(encoder, input_ids=meta(1, 77, dtype=torch.int64))
    by_hand = 12 * (2 * 77 * 768 * (4 * 768 + 2 * 3072) + 4 * 77 * 77 * 768)
    assert counted == by_hand
    assert counted / 2 == pytest.approx(6.7e9, rel=0.01)  # multiply-adds, as onnx-tool reports for SD 1.4


def test_every_component_of_a_model(demo_folder):
    source = read_source(demo_folder)
    sizes = {"height": 128, "width": 128}
    for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        one = component_flops(source, name, batch=1, **sizes)
        assert one > 0
        assert component_flops(demo_folder, name, batch=3, **sizes) == pytest.approx(3 * one, rel=1e-3)
    assert component_flops("demo", "text_encoder", batch=1, height=256, width=64) == component_flops(
        source, "text_encoder", batch=1, **sizes
    )


def test_an_unknown_component_is_refused(demo_folder):
    with pytest.raises(InputError, match="controlnet"):
        component_flops(demo_folder, "controlnet", batch=1, height=128, width=128)
