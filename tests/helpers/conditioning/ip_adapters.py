"""IP-Adapters with random weights, as files in the original layout, and image encoders for them."""

from pathlib import Path

import diffusers
import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from tests.helpers.tiny_models import vision_encoder

SIDE = 32  # of an image for `vision_encoder`


def image_encoder(folder: Path, seed=31) -> Path:
    """Save a tiny vision encoder."""
    torch.manual_seed(seed)
    vision_encoder().save_pretrained(folder)
    return folder


def processor() -> CLIPImageProcessorPil:
    """The processor that diffusers makes for such an encoder."""
    return CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)


def _linear(name, out, into, draw, bias=True):
    return {f"{name}.weight": draw(out, into) / into**0.5} | ({f"{name}.bias": draw(out)} if bias else {})


def projection(kind: str, text: int, draw) -> dict[str, torch.Tensor]:
    """The projection of an adapter, under the names of the published files."""
    norm = {"weight": 1 + 0.1 * draw(text), "bias": 0.1 * draw(text)}
    if kind == "plain":
        return _linear("proj", 4 * text, 48, draw) | {f"norm.{n}": t for n, t in norm.items()}
    if kind == "full":
        hidden = _linear("proj.0", 32, 32, draw) | _linear("proj.2", text, 32, draw)
        return hidden | {f"proj.3.{n}": t for n, t in norm.items()}
    if kind == "face_id":
        hidden = _linear("proj.0", 1024, 512, draw) | _linear("proj.2", 4 * text, 1024, draw)
        return hidden | {f"norm.{n}": t for n, t in norm.items()}
    plus = IPAdapterPlusImageProjection(
        embed_dims=32, output_dims=text, hidden_dims=64, heads=1, num_queries=4, depth=4
    ).state_dict()
    names: dict[str, torch.Tensor] = {}
    for name, tensor in plus.items():  # diffusers' names -> the published ones
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] in ("ln0", "ln1"):
            name = f"layers.{parts[1]}.0.norm{int(parts[2][-1]) + 1}.{parts[3]}"
        elif parts[0] == "layers" and parts[2] == "attn" and parts[3] in ("to_k", "to_v"):
            continue
        elif parts[0] == "layers" and parts[2] == "attn":
            name = f"layers.{parts[1]}.0.{parts[3]}.weight"
        elif parts[0] == "layers":
            end = {"0": "0", "1.net.0.proj": "1", "1.net.2": "3"}[".".join(parts[3:-1])]
            name = f"layers.{parts[1]}.1.{end}.{parts[-1]}"
        names[name] = tensor
    for i in range(4):
        names[f"layers.{i}.0.to_kv.weight"] = torch.cat([plus[f"layers.{i}.attn.to_{n}.weight"] for n in "kv"])
    return names


def save_ip_adapter(path: Path, unet_folder: Path, kind: str, strength: float = 4.0) -> Path:
    """Save an adapter for a U-Net: its values are `strength` times as large as those of usual layers."""
    generator = torch.Generator().manual_seed(len(kind))
    torch.manual_seed(len(kind))

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    text = unet.config.cross_attention_dim
    tensors = {f"image_proj.{name}": tensor for name, tensor in projection(kind, text, draw).items()}
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    modules = dict(unet.named_modules())
    for number, name in enumerate(layers):
        width = modules[name.removesuffix(".processor")].to_k.weight.shape[0]
        start = f"ip_adapter.{2 * number + 1}"
        tensors[f"{start}.to_k_ip.weight"] = 2 * draw(width, text) / text**0.5
        tensors[f"{start}.to_v_ip.weight"] = strength * draw(width, text) / text**0.5
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
