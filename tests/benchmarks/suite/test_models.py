"""Tests of full-size models as configs on the meta device, and of their creation with tiny ones."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calotype.benchmarks.suite import models
from calotype.benchmarks.suite.flops import component_flops, module_of
from calotype.errors import BuildError, InputError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import read_source
from calotype.plan.family import family_of

CROSS, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY = {
    "pipeline": "StableDiffusionPipeline",
    "scheduler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}),
    "text_encoder": ("CLIPTextModel", {**TEXT, "vocab_size": 49408, "hidden_act": "gelu"}),
    "unet": (
        "UNet2DConditionModel",
        {
            **{"sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1, "attention_head_dim": [2, 4]},
            **{"down_block_types": [CROSS, "DownBlock2D"], "up_block_types": ["UpBlock2D", UP]},
            **{"cross_attention_dim": 32, "use_linear_projection": True},
        },
    ),
    "vae": (
        "AutoencoderKL",
        {
            **{"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "latent_channels": 4},
            **{"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
        },
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model and a ControlNet for it."""
    folder = tmp_path_factory.mktemp("models")
    models.make_described(described=TINY, folder=folder / "model", seed=3)
    models.make_controlnet(model=folder / "model", folder=folder / "controlnet", seed=3)
    return folder


# The numbers of the published checkpoints. The two halves of the VAE share nothing.
@pytest.mark.parametrize(
    ("model", "part", "parameters"),
    [
        ("sd15", "unet", 859_520_964),
        ("sd15", "text_encoder", 123_060_480),
        ("sd15", "vae_decoder", 49_490_199),
        ("sd15", "vae_encoder", 34_163_664),
        ("sd21", "unet", 865_910_724),
        ("sd21", "text_encoder", 340_387_840),
        ("sd-turbo", "unet", 865_910_724),
        ("sdxl", "unet", 2_567_463_684),
        ("sdxl", "text_encoder_2", 694_659_840),
        ("sdxl-turbo", "unet", 2_567_463_684),
    ],
)
def test_configs_are_the_published_ones(model, part, parameters):
    config = MODELS[model]["vae" if part.startswith("vae") else part][1]
    assert sum(p.numel() for p in module_of(part, config).parameters()) == parameters


@pytest.mark.parametrize("name", MODELS)
def test_schedulers_are_the_published_ones(name):
    import diffusers

    class_name, settings = MODELS[name]["scheduler"]
    scheduler = getattr(diffusers, class_name)(**settings)  # an unknown setting would be an error
    assert scheduler.config.prediction_type == ("v_prediction" if name == "sd21" else "epsilon")
    if "turbo" in name:
        scheduler.set_timesteps(1)
        assert scheduler.timesteps.tolist() == [999.0]


def test_a_created_model_can_be_read(tiny):
    source = read_source(tiny / "model", [tiny / "controlnet"])
    family = family_of(source.configs)
    assert family.name == "sd2"
    assert set(family.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder", "controlnet"}
    assert load_file(tiny / "model/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    for name in family.components:
        assert component_flops(source, name, batch=2, height=64, width=64) > 0


def test_a_seed_gives_the_same_weights(tiny, tmp_path):
    for seed in (3, 4):
        models.make_described(described=TINY, folder=tmp_path / str(seed), seed=seed)
        models.make_controlnet(model=tmp_path / str(seed), folder=tmp_path / f"net-{seed}", seed=seed)
    digests = {s: read_source(tmp_path / str(s), [tmp_path / f"net-{s}"]).digests for s in (3, 4)}
    assert digests[3] == read_source(tiny / "model", [tiny / "controlnet"]).digests
    assert all(digests[3][part] != digests[4][part] for part in digests[3])


def test_a_controlnet_steers(tiny):
    import diffusers

    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_pretrained(tiny / "controlnet")
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 32))
    image = torch.from_numpy(np.asarray(models.control_image(height=64, width=64)).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (shown, blank) = (net(*inputs, controlnet_cond=c, return_dict=False) for c in (image, torch.zeros_like(image)))
    for a, b in zip((*shown[0], shown[1]), (*blank[0], blank[1]), strict=True):
        assert 0.05 < a.std() < 1
        assert (a - b).abs().max() > 1e-3


def test_control_images_are_seeded_outlines():
    first, again, other = (np.asarray(models.control_image(height=96, width=64, seed=s)) for s in (0, 0, 1))
    assert first.shape == (96, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(np.unique(first)) == {0, 255}
    assert 0.02 < (first > 0).mean() < 0.5


def test_a_model_is_created_once_and_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    monkeypatch.setitem(models.MODELS, "tiny", TINY)
    folder = models.model_folder("tiny")
    assert folder.parent == tmp_path / "store"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    monkeypatch.setattr(models, "run_in_subprocess", None)  # a second call creates nothing
    assert models.model_folder("tiny") == folder
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(models, "run_in_subprocess", fail)
    with pytest.raises(BuildError):  # another seed is another model; a partial one is not kept
        models.model_folder("tiny", seed=1)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def fail(*_, **__):
    raise BuildError("the disk is full")


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="sd-turbo-taesd"):
        models.model_folder("sd3")
