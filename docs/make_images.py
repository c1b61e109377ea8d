"""Generate the images of the guides with the demonstration model: `python docs/make_images.py`.

Each function below makes the images of one guide and returns rows: file name -> images, which are set side by side.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import calotype
from calotype.images.preprocess import canny

GAP = 4  # pixels between two images
CIRCLE = "a large red circle on a blue background"
STAR = "a large green star on a blue background"
HEART = "a large orange heart on a pink background"
PAIR = "a yellow heart left of a purple ring on a black background"
DIAMONDS = "a pink diamond above a black diamond on a green background"
Rows = Mapping[str, Sequence[Image.Image]]


def text_to_image(pipe: Any) -> Rows:
    """Prompts, guidance scales, and the previews of one image."""
    prompts = (CIRCLE, STAR, PAIR, "a small green cross left of a cyan triangle on a red background")
    previews = [e.preview()[0] for e in pipe.stream(PAIR, steps=20, seed=3) if e.step in (1, 4, 8, 20)]
    return {
        "prompts": [pipe(prompt, seed=3).images[0] for prompt in prompts],
        "guidance": [pipe(PAIR, seed=12, guidance_scale=scale).images[0] for scale in (1, 2, 5, 10)],
        "previews": previews,
    }


def regions(pipe: Any) -> Rows:
    """The image of a prompt, the mask of a region, and the image with a prompt for it."""
    right = Image.new("L", (128, 128), 0)
    right.paste(255, (64, 0, 128, 128))
    prompts = ["a large green circle on a blue background"]
    joined = pipe(CIRCLE, region_prompts=prompts, region_masks=[right], seed=2).images[0]
    return {"regions": [pipe(CIRCLE, seed=2).images[0], right, joined]}


def image_to_image(pipe: Any) -> Rows:
    """One image at rising strengths."""
    circle = pipe(CIRCLE, seed=7).images[0]
    stars = [pipe(STAR, image=circle, strength=strength, seed=5).images[0] for strength in (0.15, 0.3, 0.8)]
    return {"image-to-image": [circle, *stars]}


def hires(pipe: Any) -> Rows:
    """The first pass, the same enlarged, both kinds of second pass, and the prompt at the larger size at once."""
    enlarged = pipe(STAR, seed=3).images[0].resize((160, 160), Image.Resampling.LANCZOS)
    passes = [pipe(STAR, seed=3, hires=1.25, hires_upscaler=name).images[0] for name in ("lanczos", "latent")]
    at_once = pipe(STAR, seed=3, width=160, height=160).images[0]
    return {"hires": [enlarged, *passes, at_once]}


def inpainting(pipe: Any) -> Rows:
    """An image, a mask, and the result."""
    circle = pipe("a small red circle on a blue background", seed=3).images[0]
    mask = Image.new("L", circle.size, 0)
    mask.paste(255, (0, 0, 128, 64))
    prompt = "a small yellow square above a small red circle on a blue background"
    return {"inpainting": [circle, mask, pipe(prompt, image=circle, mask_image=mask, seed=3).images[0]]}


def controlnet(pipe: Any) -> Rows:
    """The edges of an image, and other prompts with these edges."""
    edges = canny(pipe(PAIR, seed=3).images[0])
    steered = calotype.load("demo", controlnet="demo-canny")
    prompt = "a red heart left of a green ring on a white background"
    scales = (0.0, 0.5, 1.0)
    hearts = [steered(prompt, control_image=edges, controlnet_conditioning_scale=s, seed=8).images[0] for s in scales]
    return {"controlnet": [edges, *hearts]}


def lora(pipe: Any) -> Rows:
    """The LoRA of outlines at rising weights."""
    outlined = []
    for weight in (0.0, 0.5, 1.0):
        pipe.set_lora([(str(files("calotype") / "demo_model/outline.safetensors"), weight)])
        outlined.append(pipe(HEART, seed=3).images[0])
    pipe.set_lora(None)
    return {"lora": outlined}


def style_aligned(pipe: Any) -> Rows:
    """Five prompts that leave the background open: each by itself, and in the style of the first."""
    aligned = calotype.load("demo", style_aligned=True)
    prompts = [f"a yellow {shape}" for shape in ("star", "circle", "square", "heart", "ring")]
    settings: dict[str, Any] = {"seed": 3, "guidance_scale": 1}
    apart, together = (aligned(prompts, **settings, style_aligned=on).images for on in (False, True))
    return {"style-apart": apart, "style-aligned": together}


def textual_inversion(pipe: Any) -> Rows:
    """One new word with the vectors of "cyan ring", in three prompts."""
    from safetensors.numpy import load_file, save_file
    from tokenizers import Tokenizer

    model = files("calotype") / "demo_model"
    tensors = load_file(str(model / "text_encoder" / "model.safetensors"))
    table = next(tensor for name, tensor in tensors.items() if name.endswith("token_embedding.weight"))
    ids = Tokenizer.from_file(str(model / "tokenizer" / "tokenizer.json")).encode("cyan ring").ids[1:-1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sky.safetensors"
        save_file({"<sky>": table[ids].astype(np.float32)}, file)
        learned = calotype.load("demo", textual_inversion=file)
        prompts = (
            "a large <sky> on a white background",
            "a small red cross left of a large <sky> on a black background",
        )
        return {"textual-inversion": [learned(prompt, seed=5).images[0] for prompt in prompts]}


def vae(pipe: Any) -> Rows:
    """An image, the same after encoding and decoding, and decoded mixes of the latents of two images."""
    circle, heart = (pipe(prompt, seed=7).images[0] for prompt in (CIRCLE, HEART))
    latents = pipe.encode([circle, heart])
    mixed = [latents[:1] * (1 - part) + latents[1:] * part for part in (0.0, 0.5, 1.0)]
    return {"vae": [circle, *pipe.decode(np.concatenate(mixed))]}


def clip_score(pipe: Any) -> Rows:
    """The images of two prompts, whose scores the page lists."""
    prompts = ["a red ring on a white background", "a blue star on a yellow background"]
    return {"clip-score": pipe(prompts, seed=1).images}


def schedulers(pipe: Any) -> Rows:
    """One prompt and seed with several schedulers, at 4 and at 20 steps."""
    names = ("ddim", "euler", "euler-a", "dpm++2m")
    return {
        f"schedulers-{steps}": [pipe(DIAMONDS, seed=4, steps=steps, scheduler=name).images[0] for name in names]
        for steps in (4, 20)
    }


GUIDES = (
    text_to_image,
    regions,
    image_to_image,
    hires,
    inpainting,
    controlnet,
    lora,
    style_aligned,
    textual_inversion,
    vae,
    clip_score,
    schedulers,
)


def row(images: Sequence[Image.Image]) -> Image.Image:
    """Set images of one height side by side on gray."""
    width = sum(image.width + GAP for image in images) - GAP
    sheet = Image.new("RGB", (width, images[0].height), "gray")
    left = 0
    for image in images:
        sheet.paste(image.convert("RGB"), (left, 0))
        left += image.width + GAP
    return sheet


def main() -> None:
    """Write one WebP file for each row."""
    parser = argparse.ArgumentParser(description="Generate the images of the guides with the demonstration model.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    output = parser.parse_args().output
    pipe = calotype.load("demo")
    for guide in GUIDES:
        for name, images in guide(pipe).items():
            row(images).save(output / f"{name}.webp", quality=90)
            print(output / f"{name}.webp")


if __name__ == "__main__":
    main()
