"""Tiny networks with random weights, and files made from them: U-Nets, text encoders, ControlNets and LoRAs."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def text_config(tokenizer, **settings) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def tiny_unet(**settings) -> diffusers.UNet2DConditionModel:
    usual = {
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
    }
    return diffusers.UNet2DConditionModel(**usual | settings)


def save_controlnet(unet_folder: Path, folder: Path, seed: int) -> Path:
    """Save a ControlNet with random weights in its zero convolutions: else it would change no image."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    for weight in net.parameters():
        if not weight.detach().any():
            torch.nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder)
    return folder


def save_model(folder: Path, demo_folder: Path, class_name: str, parts: dict) -> Path:
    """Save a model's folder: `parts` by name, and the demonstration model's files for the rest."""
    libraries = {"tokenizer": "transformers", "text_encoder": "transformers", "unet": "diffusers"}
    for name in ("tokenizer", "text_encoder", "vae", "scheduler"):
        if name not in parts:
            shutil.copytree(demo_folder / name, folder / name)
    index = json.loads((demo_folder / "model_index.json").read_text()) | {"_class_name": class_name}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [libraries.get(name.removesuffix("_2"), "diffusers"), type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_tiny_model(folder: Path, demo_folder: Path) -> Path:
    """Save a model of Stable Diffusion 1: a tiny U-Net, and the demonstration model's other parts."""
    torch.manual_seed(6)
    parts = {"unet": tiny_unet(cross_attention_dim=128, attention_head_dim=4)}
    return save_model(folder, demo_folder, "StableDiffusionPipeline", parts)


RANK = 3
# Attention and other layers of the U-Net; of a text encoder all layers that kohya trains, by which diffusers knows it.
TRAINED = ("to_q", "to_k", "to_out.0", "ff.net.0.proj", "conv1", "proj_in")
TRAINED += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _trained_layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its weight, for the layers that the LoRAs change."""
    shapes = {n: tuple(t.shape) for n, t in load_file(next(folder.glob("*.safetensors"))).items()}
    return {n.removesuffix(".weight"): s for n, s in shapes.items() if n.removesuffix(".weight").endswith(TRAINED)}


def _lora_pair(layout: str, component: str, layer: str, down: torch.Tensor, up: torch.Tensor) -> dict:
    """One layer's matrices under the names of a layout."""
    if layout == "diffusers":
        stem, names = f"{component}.{layer}", ("lora_A", "lora_B")
    elif layout == "older":
        stem, names = f"{component}.{layer}", ("lora.down", "lora.up")
        if component != "unet":
            names = ("lora_linear_layer.down", "lora_linear_layer.up")
    else:  # kohya uses the names of older transformers, whose text models had one more level
        level = "text_model." if component == "text_encoder" and not layer.startswith("text_model.") else ""
        stem, names = f"{KOHYA_PREFIXES[component]}_{(level + layer).replace('.', '_')}", ("lora_down", "lora_up")
    pair = {f"{stem}.{names[0]}.weight": down, f"{stem}.{names[1]}.weight": up}
    return pair | ({f"{stem}.alpha": torch.tensor(2.0)} if layout == "kohya" else {})


def save_lora(folder: Path, path: Path, components=("unet",), layout="diffusers", seed=0, strength=0.3) -> Path:
    """Save a LoRA of random numbers for the model in `folder`. kohya's has an alpha: the scale is alpha / rank."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for component in components:
        for layer, (out, into, *kernel) in _trained_layers(folder / component).items():
            down = torch.randn(RANK, into, *kernel, generator=generator) / into**0.5
            up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) * strength
            tensors |= _lora_pair(layout, component, layer, down, up)
    save_file(tensors, path)
    return path
