"""LoRA files of one layer, and their weight deltas."""

import torch
from safetensors.torch import save_file

from calotype.lora.lora import parse_loras, weight_deltas_of


def pair(layer="conv_in", *, rank=2, out=6, into=8, **others):
    """Return the tensors of one layer in a kohya file."""
    tensors = {"lora_down.weight": torch.ones(rank, into), "lora_up.weight": torch.ones(out, rank)} | others
    return {f"lora_unet_{layer}.{part}": tensor for part, tensor in tensors.items()}


def delta_in(path, tensors, shape=(6, 8), metadata=None, weight=1.0):
    save_file(tensors, path, metadata)
    return weight_deltas_of(parse_loras((path, weight)), {"unet": {"conv_in": shape}})["unet"].patches["conv_in.weight"]
