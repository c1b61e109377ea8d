"""Control-LoRAs with random weights in the published layout, and a tiny SDXL with two blocks a level, as published."""

import re
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
_RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_STARTS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}


def save_xl(folder: Path, sdxl_folder: Path) -> Path:
    """Save an XL model whose U-Net has two blocks a level and three levels."""
    torch.manual_seed(43)
    shutil.copytree(sdxl_folder, folder)
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    levels = {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "attention_head_dim": [2, 4, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    shutil.rmtree(folder / "unet")
    diffusers.UNet2DConditionModel.from_config({**config, **levels}).save_pretrained(folder / "unet")
    return folder


def original_name(name: str) -> str:
    """Return the original name of a ControlNet's tensor, for two blocks a level."""
    names = "|".join(_RESNET)
    name = re.sub(rf"(resnets\.\d+)\.({names})\.", lambda match: f"{match[1]}.{_RESNET[match[2]]}.", name)
    for new, old in _STARTS.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.+)", name):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)", name):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{match[2]}"
    match = re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", name)
    first, kind, layer, rest = 3 * int(match[1]) + 1, match[2], int(match[3]), match[4]
    if kind == "downsamplers":
        return f"input_blocks.{first + 2}.0.op.{rest.removeprefix('conv.')}"
    return f"input_blocks.{first + layer}.{'01'[kind == 'attentions']}.{rest}"


def save_control_lora(unet_folder: Path, path: Path, rank: int = 4, shift: float = 0.1) -> diffusers.ControlNetModel:
    """Write a file, and return the ControlNet that it stands for: the U-Net's weights plus the products.

    `shift` is added to all biases.
    """
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    tensors = {"lora_controlnet": torch.tensor([])}
    for layer, module in net.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        old = original_name(f"{layer}.weight").removesuffix(".weight")
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or layer.startswith("controlnet_"):
            if not weight.detach().any():
                torch.nn.init.normal_(weight, std=0.2)
            tensors[f"{old}.weight"] = weight.detach().clone()
        else:
            inner = weight[0].numel()
            up, down = torch.randn(len(weight), rank) * 0.3, torch.randn(rank, inner) / inner**0.5
            weight.data += (up @ down).reshape(weight.shape)
            tail = (1, 1) if weight.ndim == 4 else ()
            tensors[f"{old}.up"], tensors[f"{old}.down"] = (
                up.reshape(-1, rank, *tail),
                down.reshape(rank, *weight[0].shape),
            )
        if module.bias is not None:
            module.bias.data += shift
            tensors[f"{old}.bias"] = module.bias.detach().clone()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return net.eval()
