"""T2I-Adapters with random weights, and the tiny U-Nets that they steer: of Stable Diffusion 1 and of XL."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_models import save_model, tiny_unet

WIDTHS = (32, 64, 64)


def save_sd(folder: Path, demo_folder: Path) -> Path:
    """Save a model whose U-Net starts with attention and ends without, as that of Stable Diffusion 1."""
    torch.manual_seed(41)
    unet = tiny_unet(
        cross_attention_dim=128,
        attention_head_dim=4,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return save_model(folder, demo_folder, "StableDiffusionPipeline", {"unet": unet})


def save_xl(folder: Path, sdxl_folder: Path) -> Path:
    """Save a model whose U-Net starts without attention, as that of XL, from the folder of another XL model."""
    torch.manual_seed(42)
    shutil.copytree(sdxl_folder, folder)
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    levels = {
        "block_out_channels": WIDTHS,
        "attention_head_dim": [2, 4, 4],
        "transformer_layers_per_block": [1, 1, 1],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    shutil.rmtree(folder / "unet")
    diffusers.UNet2DConditionModel.from_config({**config, **levels}).save_pretrained(folder / "unet")
    return folder


SETTINGS = {
    "full_adapter": {"channels": [32, 64, 64], "downscale_factor": 8},
    "full_adapter_xl": {"channels": [32, 64, 64, 64], "downscale_factor": 16},
    "light_adapter": {"channels": [32, 64], "downscale_factor": 8},
}


def adapter(kind: str, in_channels: int = 3, seed: int = 0) -> diffusers.T2IAdapter:
    """Return an adapter whose features are as large as the states of a U-Net."""
    torch.manual_seed(seed)
    settings = {"num_res_blocks": 2, "in_channels": in_channels, **SETTINGS[kind]}
    net = diffusers.T2IAdapter(adapter_type=kind, **settings)
    for weight in net.parameters():
        weight.data *= 3
    return net.eval()


def save_adapter(folder: Path, kind: str, in_channels: int = 3, seed: int = 0) -> Path:
    adapter(kind, in_channels, seed).save_pretrained(folder)
    return folder


def save_original(folder: Path, path: Path) -> Path:
    """Save the adapter of a folder in the layout of the published files of TencentARC."""
    config = json.loads((folder / "config.json").read_text())
    light, each = config["adapter_type"] == "light_adapter", config["num_res_blocks"]
    tensors = {}
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        parts = name.removeprefix("adapter.").split(".")
        if parts[0] == "body" and light:
            parts = ["body" if part == "resnets" else part for part in parts]
        elif parts[0] == "body" and parts[2] == "resnets":
            parts = ["body", str(int(parts[1]) * each + int(parts[3])), *parts[4:]]
        elif parts[0] == "body":
            parts = ["body", str(int(parts[1]) * each), *parts[2:]]
        tensors[".".join(parts)] = tensor
    save_file(tensors, path)
    return path
