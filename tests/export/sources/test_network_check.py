"""Configs are checked against the headers of weights: every network of diffusers passes, and no other size does."""

import contextlib
import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from calotype.errors import SourceError
from calotype.export.sources.configs import MODELS, REFINER
from calotype.export.sources.convert import full_config
from calotype.plan.network_check import check_network, token_rows

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SMALL = {"block_out_channels": (32, 64, 64), "sample_size": 16, "cross_attention_dim": 32, "norm_num_groups": 8}
SMALL |= {"down_block_types": (PLAIN, CROSS, CROSS), "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)}
UNETS = {
    "plain": {},
    "layers by level": {"layers_per_block": (1, 2, 3)},
    "depths by level": {"transformer_layers_per_block": (1, 2, 3), "layers_per_block": 1},
    "depths by attention": {
        "transformer_layers_per_block": ((1, 1), (2, 1), (1, 2)),
        "reverse_transformer_layers_per_block": ((1, 2, 1), (2, 1, 1), (1, 1, 1)),
    },
    "no attention in the middle": {"mid_block_type": "UNetMidBlock2D"},
    "no middle": {"mid_block_type": None},
    "two texts": {"dual_cross_attention": True},
    "linear projections and guidance": {"use_linear_projection": True, "time_cond_proj_dim": 16},
}
PIXELS = {
    "DownBlock2D": ("DownBlock2D", "UpBlock2D"),
    "AttnDownBlock2D": ("AttnDownBlock2D", "AttnUpBlock2D"),
    "SkipDownBlock2D": ("SkipDownBlock2D", "SkipUpBlock2D"),
    "ResnetDownsampleBlock2D": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
}
LEVELS = {"block_out_channels": (32, 64), "layers_per_block": 2, "norm_num_groups": 32}
LEVELS |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def networks():
    """Yield (name, component, network) for every supported kind."""
    for model, parts in {**MODELS, "refiner": REFINER}.items():
        for component in [part for part in parts if part.startswith(("text_encoder", "unet", "vae"))]:
            yield f"{model} {component}", component, build(*parts[component])
    for name, config in UNETS.items():
        yield f"unet, {name}", "unet", diffusers.UNet2DConditionModel(**{**SMALL, **config})
    unet = diffusers.UNet2DConditionModel(**SMALL)
    yield "controlnet", "controlnet_1", diffusers.ControlNetModel.from_unet(unet)
    for name, (down, up) in PIXELS.items():
        kinds = {"down_block_types": (PLAIN, down), "up_block_types": (up, "UpBlock2D")}
        yield f"pixels, {name}", "unet", diffusers.UNet2DModel(sample_size=16, block_out_channels=(32, 64), **kinds)
    yield "AutoencoderKL", "vae", diffusers.AutoencoderKL(**LEVELS)
    yield "VQModel", "vae", diffusers.VQModel(**LEVELS, latent_channels=4, vq_embed_dim=3)
    yield "AutoencoderTiny", "vae", diffusers.AutoencoderTiny()
    levels = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    yield "smaller", "vae", diffusers.AutoencoderTiny(**levels, num_encoder_blocks=(1, 2), num_decoder_blocks=(3, 1))


def build(name, config):
    if hasattr(diffusers, name):
        return getattr(diffusers, name).from_config(dict(config))
    return getattr(transformers, name)(transformers.CLIPTextConfig(**config))


@pytest.fixture(scope="module")
def described():
    with torch.device("meta"):
        built = list(networks())
    plain = {name: (component, json.loads(json.dumps(full_config(net)))) for name, component, net in built}
    shapes = {name: {n: tuple(t.shape) for n, t in net.state_dict().items()} for name, _, net in built}
    return {name: (*plain[name], shapes[name]) for name in plain}


def test_every_kind_of_network_passes(described):
    assert len(described) > 25
    for component, config, shapes in described.values():
        check_network(Path("config.json"), component, config, shapes)


COUNTS = ("num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings", "intermediate_size")
COUNTS += ("layers_per_block", "transformer_layers_per_block", "block_out_channels", "in_channels", "out_channels")
COUNTS += ("down_block_types", "up_block_types", "latent_channels", "cross_attention_dim", "vq_embed_dim")
COUNTS += ("num_encoder_blocks", "num_decoder_blocks", "conditioning_embedding_out_channels")


def larger(value):
    """Return a larger value of the same type, which does not fit the weights."""
    if isinstance(value, list):
        return [*value, value[-1]] if value and isinstance(value[0], str) else [larger(v) for v in value]
    return value + 10**7


def test_values_larger_than_the_weights_are_refused_with_their_field(described):
    tried = 0
    for name, (component, config, shapes) in described.items():
        unread = {"out_channels"} if component.startswith("controlnet") else set()
        unread |= {"transformer_layers_per_block"} if name == "unet, two texts" else set()
        unread |= {"out_channels", "block_out_channels"} if config.get("_class_name") == "AutoencoderTiny" else set()
        for field in {*COUNTS, "encoder_block_out_channels"} - unread:
            if config.get(field) is None or (field == "vocab_size" and token_rows(shapes) is None):
                continue
            with pytest.raises(SourceError, match=field):
                check_network(Path("config.json"), component, {**config, field: larger(config[field])}, shapes)
            tried += 1
    assert tried > 150


@pytest.mark.parametrize(
    "odd", [True, "3", 1e300, float("nan"), [], {}, [[]], -1, 10**400], ids=lambda odd: f"{odd!r:.9}"
)
def test_odd_values_cause_no_other_error(described, odd):
    for name, (component, config, shapes) in described.items():
        for field in config if len(shapes) < 500 or name == "sdxl unet" else ():
            with contextlib.suppress(SourceError):
                check_network(Path("config.json"), component, {**config, field: odd}, shapes)


def test_a_header_with_hostile_names_is_read_fast():
    shapes = {"down_blocks." + "0." * 100_000 + "weight": (1,), **{f"down_blocks.{i}.x": (1,) for i in range(20_000)}}
    with pytest.raises(SourceError, match="down_block_types"):
        check_network(Path("config.json"), "unet", {"down_block_types": ["DownBlock2D"]}, shapes)
