"""What tests of LoRAs share: files of one layer, two models, and pipelines with two LoRAs each."""

from functools import cache

import diffusers
import torch
from safetensors.torch import save_file

import calotype
from calotype.lora.lora import parse_loras, weight_deltas_of
from tests.helpers.tiny_models import save_lora

MODELS = {
    "demonstration": ("demo_folder", diffusers.StableDiffusionPipeline, ["unet", "text_encoder"]),
    "Stable Diffusion XL": (
        "sdxl_folder",
        diffusers.StableDiffusionXLPipeline,
        ["unet", "text_encoder", "text_encoder_2"],
    ),
}
PROMPT = "a large green star on a blue background"
OPTIONS = {"steps": 2, "scheduler": "ddim", "guidance_scale": 5.0, "seed": 5, "output_type": "np"}
SIZE = {"height": 32, "width": 64}


def generate(pipe, **more):
    return pipe(PROMPT, **SIZE, **{**OPTIONS, **more}).images


def pipelines_and_loras(request, folder):
    """Return functions from a model and a backend to the pipeline, and from a model to its LoRAs; each is made once."""

    @cache
    def pipe(model, backend):
        return calotype.load(request.getfixturevalue(MODELS[model][0]), backend=backend)

    @cache
    def loras(model):
        fixture, _, components = MODELS[model]
        source, stem = request.getfixturevalue(fixture), model.replace(" ", "-")
        return [
            save_lora(source, folder / f"{stem}-a.safetensors", components, "diffusers", 1, 0.1),
            save_lora(source, folder / f"{stem}-b.safetensors", components[:2], "kohya", 2, 0.1),
        ]

    return pipe, loras


def pair(layer="conv_in", *, rank=2, out=6, into=8, **others):
    """Return the tensors of one layer in a kohya file."""
    tensors = {"lora_down.weight": torch.ones(rank, into), "lora_up.weight": torch.ones(out, rank)} | others
    return {f"lora_unet_{layer}.{part}": tensor for part, tensor in tensors.items()}


def delta_in(path, tensors, shape=(6, 8), metadata=None, weight=1.0):
    save_file(tensors, path, metadata)
    return weight_deltas_of(parse_loras((path, weight)), {"unet": {"conv_in": shape}})["unet"].patches["conv_in.weight"]
