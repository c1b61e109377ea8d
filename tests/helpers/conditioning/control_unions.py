"""ControlNet-Unions with random weights."""

import inspect
from pathlib import Path

import diffusers
import torch

TYPES = 6


def save_union(unet_folder: Path, folder: Path, seed: int, heads: int = 4) -> Path:
    """Save a network for a U-Net, with random weights in its zero layers: else it would change no image."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.load_config(unet_folder)
    known = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    width = unet["block_out_channels"][0]
    sizes = {"num_control_type": TYPES, "num_trans_channel": width, "num_proj_channel": width, "num_trans_head": heads}
    config = {name: value for name, value in unet.items() if name in known} | sizes
    net = diffusers.ControlNetUnionModel(**config, conditioning_embedding_out_channels=(8, 8, 8, 16))
    for weight in net.parameters():
        if not weight.detach().any():
            torch.nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder)
    return folder
