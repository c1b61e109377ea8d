"""What a trace depends on: one form for configs of folders, of older folders, and of modules in memory."""

import inspect
import json

import diffusers
import pytest
from transformers import CLIPTextConfig, CLIPVisionConfig

from calotype.export.onnx.trace_key import DEFAULTS, OTHER_DEFAULTS, trace_key
from calotype.plan import networks
from calotype.plan.family import Component

NETWORKS = (
    *("UNet2DConditionModel", "UNet2DModel", "UNetSpatioTemporalConditionModel", "AutoencoderKLTemporalDecoder"),
    *("ControlNetModel", "ControlNetUnionModel", "AutoencoderKL", "AutoencoderTiny", "VQModel", "T2IAdapter"),
)


def key(config, name="unet") -> dict:
    return json.loads(json.dumps(trace_key(Component(name=name, inputs=(), outputs=(), config=config)), default=str))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_defaults_are_diffusers(name):
    parameters = inspect.signature(getattr(diffusers, name)).parameters
    ours = {**DEFAULTS, **OTHER_DEFAULTS.get(name, {})}
    theirs = {field: parameters[field].default for field in ours if field in parameters}
    assert theirs == {field: ours[field] for field in theirs}


def test_older_configs_and_those_in_memory_are_one():
    unet = {**diffusers.UNet2DConditionModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=2).config}
    unet["_class_name"] = "UNet2DConditionModel"
    older = {name: value for name, value in unet.items() if name not in DEFAULTS and value is not None}
    older |= {"norm_num_groups": 2, "_diffusers_version": "0.6.0", "sample_size": 7}
    assert key(older) == key(unet)
    assert key(unet | {"mid_block_type": None}) != key(unet)
    assert key(unet | {"norm_eps": 1e-6}) != key(unet)
    assert key(unet) != key(unet, "controlnet")
    assert key(unet, "controlnet_1") == key(unet, "controlnet")


@pytest.mark.parametrize("kind", [CLIPTextConfig, CLIPVisionConfig])
def test_configs_of_clip_in_files_and_in_memory_are_one(kind, tmp_path):
    config = kind(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, projection_dim=24)
    config.save_pretrained(tmp_path)
    file = json.loads((tmp_path / "config.json").read_text())
    assert key(file | {"transformers_version": "4.21.0", "top_k": 50}) == key(config.to_dict())
    assert key(file | {"hidden_act": "gelu"}) != key(file)


def test_bindings_are_part_of_the_key():
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4}
    decoder, encoder = networks.vae(config)
    assert trace_key(decoder) != trace_key(encoder)
