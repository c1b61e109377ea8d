"""What the tests of `set_lora` share: two models, the options of their images, and pipelines with two LoRAs each."""

from functools import cache

import diffusers

import calotype
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
OPTIONS = {"steps": 4, "scheduler": "ddim", "guidance_scale": 5.0, "seed": 5, "output_type": "np"}
SIZE = {"height": 64, "width": 64}


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
