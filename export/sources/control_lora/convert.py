"""Make a ControlNet of a model's U-Net and a Control-LoRA (https://huggingface.co/stabilityai/control-lora).

Each layer of the ControlNet has the weight of the U-Net plus the product `up @ down` of the file. Biases, norms, and
the layers that a U-Net lacks are full tensors in the file; the U-Net has the rest. This module imports torch, so it
runs in a child process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from calotype.errors import SourceError

from ..convert import check_tensors, full_config, load_tensors, network_of
from ..single_file import CONTROL_LORA

_STARTS = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "input_hint_block.0.": "controlnet_cond_embedding.conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "middle_block_out.0.": "controlnet_mid_block.",
}
_OF_RESNETS = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "emb_layers.1.": "time_emb_proj.",
    "skip_connection.": "conv_shortcut.",
}
_INPUT = re.compile(r"input_blocks\.(\d+)\.(\d+)\.(.+)")
_NUMBERED = re.compile(r"(zero_convs|input_hint_block)\.(\d+)\.(.+)")


def convert_control_lora_into(*, out: str, file: str, unet: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Write the ControlNet as a folder in diffusers' layout.

    Args:
        out: an empty folder.
        file: the Control-LoRA.
        unet: the files of the U-Net's weights in diffusers' layout, with the digests that the store's entry depends on.
        config: the config of the ControlNet: the U-Net's, with the layers for the control image.

    Raises:
        SourceError: a tensor is unknown, missing, or of another shape than the U-Net's.
    """
    network = network_of("ControlNetModel", config)
    hints = len(config["conditioning_embedding_out_channels"])
    own = {
        diffusers_name(name, config.get("layers_per_block", 2), 4 * hints - 2): tensor
        for name, tensor in load_tensors(file).items()
        if name != CONTROL_LORA
    }
    low_rank = {name.removesuffix(".up") for name in own if name.endswith(".up")}
    state = {name: tensor for name, tensor in own.items() if not name.endswith((".up", ".down"))}
    base = _tensors_of(unet, {*network.state_dict()} - {*state})
    for layer in sorted(low_rank):
        name = f"{layer}.weight"
        if name not in base or f"{layer}.down" not in own:
            raise SourceError(f"{file} is a Control-LoRA, but {layer} is no layer of this model's U-Net.", path=file)
        up, down = (own[f"{layer}.{end}"].float().flatten(1) for end in ("up", "down"))
        if up.shape[1] != down.shape[0] or len(up) * down.shape[1] != base[name].numel():
            shapes = f"{list(up.shape)} and {list(down.shape)}"
            message = f"{file} does not fit the model's U-Net: {layer} has {shapes} for {list(base[name].shape)}."
            raise SourceError(message, path=file, field=layer)
        base[name] = (base[name].float() + (up @ down).reshape(base[name].shape)).to(base[name].dtype)
    kinds = {tensor.dtype for tensor in base.values()} or {torch.float32}  # a network computes in one type
    kind = kinds.pop() if len(kinds) == 1 else torch.float32
    state = {name: tensor.to(kind).contiguous() for name, tensor in {**base, **state}.items()}
    remedy = ". Use one of the model's family"
    check_tensors(f"{file} is a Control-LoRA, but with this model it", state, network, remedy)
    folder = Path(out)
    (folder / "config.json").write_text(json.dumps(full_config(network), indent=1))
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def diffusers_name(name: str, layers: int, last_hint: int) -> str:
    """Return diffusers' name of a ControlNet's tensor; a name that is unknown stays, and fits no network.

    Args:
        name: the name in the original layout.
        layers: the residual blocks of each level.
        last_hint: the number of the last layer for the control image.
    """
    for start, new in _STARTS.items():
        if name.startswith(start):
            return new + _of_resnet(name.removeprefix(start))
    if match := _NUMBERED.fullmatch(name):
        number, rest = int(match[2]), match[3]
        if match[1] == "zero_convs":
            return f"controlnet_down_blocks.{number}.{rest.removeprefix('0.')}"
        end = "conv_out" if number == last_hint else f"blocks.{number // 2 - 1}"
        return f"controlnet_cond_embedding.{end}.{rest}"
    if not (match := _INPUT.fullmatch(name)):
        return name
    (block, layer), rest = divmod(int(match[1]) - 1, layers + 1), match[3]
    if match[2] == "1":
        return f"down_blocks.{block}.attentions.{layer}.{rest}"
    if rest.startswith("op."):
        return f"down_blocks.{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    return f"down_blocks.{block}.resnets.{layer}.{_of_resnet(rest)}"


def _of_resnet(rest: str) -> str:
    start = next((start for start in _OF_RESNETS if rest.startswith(start)), None)
    return rest if start is None else _OF_RESNETS[start] + rest.removeprefix(start)


def _tensors_of(files: Iterable[str], names: set[str]) -> dict[str, Tensor]:
    """Read the tensors with these names from safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in names.intersection(opened.keys())}
    return tensors
