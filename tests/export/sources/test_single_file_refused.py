"""Autoencoders and ControlNets in one file that are refused, each with what the file holds."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.errors import SourceError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import find
from tests.helpers.components_in_files import OTHERS, written, zeros
from tests.helpers.original_layout import original_controlnet, original_vae
from tests.helpers.tiny_models import save_controlnet

pytestmark = pytest.mark.usefixtures("convert_in_this_process")
CONTENTS = {
    ("vae", "a LoRA"): "lora=.*under lora_unet_x",
    ("vae", "a LoRA of diffusers"): "lora=",
    ("vae", "a learned word"): "holds a textual inversion",
    ("vae", "a U-Net"): "holds only a U-Net",
    ("vae", "half"): "holds half an autoencoder",
    ("vae", "union"): "multi-task",
    ("vae", "of video"): "another kind",
    ("vae", "nothing"): "holds 0 tensors",
    ("vae", "one number"): "another kind",
    ("controlnet", "a LoRA"): "lora=",
    ("controlnet", "a U-Net"): "holds only a U-Net",
    ("controlnet", "a model"): "model=",
    ("controlnet", "half"): "holds half an autoencoder",
    ("controlnet", "union"): "multi-task",
    ("controlnet", "difference"): "difference",
    ("controlnet", "Control-LoRA"): "holds a Control-LoRA",
    ("controlnet", "of video"): "vae=",
}


@pytest.mark.parametrize(("name", "other"), CONTENTS)
def test_other_files_are_refused_with_their_contents(tmp_path, name, other):
    file = written(zeros(**OTHERS[other]), tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=CONTENTS[name, other]):
        calotype.load("demo", **{name: file})


@pytest.mark.parametrize(
    ("name", "reference", "kind"),
    [("vae", "AutoencoderKL", "an autoencoder"), ("controlnet", "ControlNetModel", "a ControlNet")],
)
def test_unreadable_files_are_refused(tmp_path, name, reference, kind):
    for suffix in ("ckpt", "bin", "pt", "pth"):
        torch.save({"x": torch.zeros(1)}, tmp_path / f"x.{suffix}")
        with pytest.raises(SourceError, match=rf"{reference}\.from_single_file\('x.{suffix}'\)"):
            calotype.load("demo", **{name: tmp_path / f"x.{suffix}"})
    with pytest.raises(SourceError, match=f"gone.safetensors; {kind}"):
        calotype.load("demo", **{name: tmp_path / "gone.safetensors"})
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="GGUF"):
        calotype.load("demo", **{name: tmp_path / "x.gguf"})
    file = written({"decoder.conv_in.weight": torch.zeros(64)}, tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"x.safetensors"):
        calotype.load("demo", **{name: file})
    (tmp_path / "folder").mkdir()
    written({"decoder.conv_in.weight": torch.zeros(64)}, tmp_path / "folder" / "y.safetensors")
    with pytest.raises(SourceError, match=r"y\.safetensors"):
        calotype.load("demo", **{name: tmp_path / "folder"})


def test_autoencoders_of_other_models_are_refused(base, demo_folder, tmp_path):
    config = {**diffusers.AutoencoderKL.load_config(demo_folder / "vae")}
    wider = diffusers.AutoencoderKL.from_config({**config, "latent_channels": 16})
    file = written(wider.state_dict(), tmp_path / "16.safetensors")
    with pytest.raises(SourceError, match="16 latent channels"):
        calotype.load(base, vae=file)
    file = written(diffusers.AutoencoderTiny(latent_channels=16).state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(SourceError, match="16 latent channels"):
        calotype.load(base, vae=file)
    shorter = diffusers.AutoencoderKL.from_config(
        {**config, "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
        | {"up_block_types": ["UpDecoderBlock2D"] * 2}
    )
    file = written(original_vae(shorter.state_dict(), 2, ""), tmp_path / "short.safetensors")
    with pytest.raises(SourceError, match=r"\[16, 32\]"):
        calotype.load(base, vae=file)
    deeper = diffusers.AutoencoderKL.from_config({**config, "layers_per_block": 2})
    file = written(original_vae(deeper.state_dict(), 4, ""), tmp_path / "deep.safetensors")
    with pytest.raises(SourceError, match="does not fit"):
        calotype.load(base, vae=file)


def test_controlnets_of_other_models_are_refused(demo_folder, sdxl_folder, tmp_path):
    with torch.device("meta"):
        tensors = diffusers.ControlNetModel.from_config(
            {**MODELS["sdxl"]["unet"][1], "block_out_channels": [320, 32, 32]}
        ).state_dict()
    endings = ("conv_in.weight", "add_embedding.linear_1.weight", "attn2.to_k.weight")
    needed = {n: t for n, t in tensors.items() if n.endswith(endings) or "cond_embedding" in n}
    file = written({n: torch.zeros(t.shape) for n, t in needed.items()}, tmp_path / "xl.safetensors")
    with pytest.raises(SourceError, match="level 320, text of width 2048"):
        calotype.load("demo", controlnet=file)
    network = diffusers.ControlNetModel.from_pretrained(save_controlnet(demo_folder / "unet", tmp_path / "net", 8))
    original = original_controlnet(network.state_dict(), 1)
    file = written(original, tmp_path / "demos.safetensors")
    with pytest.raises(SourceError, match="level 64, text of width 128"):
        calotype.load(sdxl_folder, controlnet=file)
    with pytest.raises(SourceError, match="pool"):
        calotype.load("demo", controlnet=written(original, tmp_path / "control_v11e_sd15_shuffle.safetensors"))
    file = written({n: t for n, t in original.items() if "zero_convs.1" not in n}, tmp_path / "less.safetensors")
    with pytest.raises(SourceError, match="does not fit: 2 tensors"):
        calotype.load("demo", controlnet=file)
    file = written({**original, "control_model.more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(SourceError, match="unsupported kind: 1 tensors"):
        calotype.load("demo", controlnet=file)


def test_a_model_with_an_invalid_config_is_refused(model_copy, tmp_path):
    config = model_copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": 64}))
    net = written(load_file(find("demo-canny") / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    with pytest.raises(SourceError, match=r"canny.safetensors"):
        calotype.load(model_copy, controlnet=net)
