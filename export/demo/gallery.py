"""`python -m calotype.export.demo.gallery`: what each task makes with the demonstration model, on a sheet.

Rows of pictures over their words, written into docs/gallery.png. A task is what the inputs say: all of it is one call.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

import calotype
from calotype.export.demo.pages import Row, sheet
from calotype.export.source import find
from calotype.preprocess import canny

CIRCLE = "a large red circle on a blue background"
STAR = "a large green star on a blue background"
PAIR = "a small yellow square above a small red circle on a blue background"
SMALL = "a small red circle on a blue background"
BESIDE = "a yellow heart left of a purple ring on a black background"
FIRST = {CIRCLE: 7, STAR: 5, SMALL: 3, BESIDE: 3}  # the first row's prompts and seeds
RECOLOURED = (
    "an orange heart left of a white ring on a purple background",
    "a red heart left of a green ring on a white background",
)


def rows_of(pipe: Any, steered: Any) -> list[Row]:
    """Each task's row of words and pictures; `steered` is the same model with the ControlNet for edges beside it."""
    circle, star, small, beside = (pipe(words, seed=seed).images[0] for words, seed in FIRST.items())
    return [
        list(zip(FIRST, (circle, star, small, beside), strict=True)),
        _painted(pipe, circle),
        _inpainted(pipe, circle, small),
        _followed(steered, beside),
        *_outlined(pipe),
    ]


def _painted(pipe: Any, circle: Image.Image) -> Row:
    """Image to image, at rising strengths."""
    return [
        (
            f"image to image, strength {strength:g}: {STAR}",
            pipe(STAR, image=circle, strength=strength, seed=5).images[0],
        )
        for strength in (0.2, 0.3, 0.4, 0.8)
    ]


def _inpainted(pipe: Any, circle: Image.Image, small: Image.Image) -> Row:
    """Two masks, each with what is painted into it."""
    mask = Image.new("L", circle.size, 0)
    mask.paste(255, (24, 16, 112, 112))
    upper = Image.new("L", circle.size, 0)
    upper.paste(255, (0, 0, 128, 64))
    return [
        ("white is painted over", mask.convert("RGB")),
        (f"inpainting: {STAR}", pipe(STAR, image=circle, mask_image=mask, seed=5).images[0]),
        ("white is painted over", upper.convert("RGB")),
        (f"inpainting: {PAIR}", pipe(PAIR, image=small, mask_image=upper, seed=3).images[0]),
    ]


def _followed(steered: Any, beside: Image.Image) -> Row:
    """The edges of a picture, and what other prompts make of them."""
    edges = canny(beside)
    made = [(f"by the edges: {w}", steered(w, control_image=edges, seed=11).images[0]) for w in RECOLOURED]
    return [("edges of the last of the first row", edges), *made]


def _outlined(pipe: Any) -> list[Row]:
    """A row of what the LoRA of outlines makes of the first one, where there is that LoRA."""
    lora = find("demo") / "outline.safetensors"
    if not lora.is_file():
        return []
    pipe.set_lora(lora)
    row = [(f"LoRA of outlines: {words}", pipe(words, seed=seed).images[0]) for words, seed in FIRST.items()]
    pipe.set_lora(None)
    return [row]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Paint the gallery of tasks with the demonstration model.")
    parser.add_argument("--output", type=Path, default=Path("docs/gallery.png"))
    parser.add_argument("--backend", default="auto")
    said = parser.parse_args()
    parts: tuple[dict[str, Any], ...] = ({}, {"controlnet": "demo-canny"})
    rows = rows_of(*(calotype.load("demo", backend=said.backend, **part) for part in parts))
    sheet(rows).save(said.output)


if __name__ == "__main__":
    main()
