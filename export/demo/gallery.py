"""`python -m calotype.export.demo.gallery`: what each task makes of one picture of the demonstration model, on a sheet.

Rows of pictures over their words, written into docs/gallery.png. A task is what the inputs say: all of it is one call.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import calotype

CIRCLE = "a large red circle on a blue background"
STAR = "a large green star on a blue background"
PAIR = "a small yellow square above a small red circle on a blue background"
SMALL = "a small red circle on a blue background"

Row = Sequence[tuple[str, Image.Image]]


def rows_of(pipe: Any) -> list[Row]:
    """Text to image, image to image at rising strengths, and inpainting: words and their pictures."""
    circle, star = pipe([CIRCLE, STAR], seed=[7, 5]).images
    painted = []
    for strength in (0.2, 0.3, 0.4, 0.8):
        made = pipe(STAR, image=circle, strength=strength, seed=5).images[0]
        painted.append((f"image to image, strength {strength:g}: {STAR}", made))
    mask = Image.new("L", circle.size, 0)
    mask.paste(255, (24, 16, 112, 112))
    upper = Image.new("L", circle.size, 0)
    upper.paste(255, (0, 0, 128, 64))
    small = pipe(SMALL, seed=3).images[0]
    inpainted = [
        ("white is painted over", mask.convert("RGB")),
        (f"inpainting: {STAR}", pipe(STAR, image=circle, mask_image=mask, seed=5).images[0]),
        ("white is painted over", upper.convert("RGB")),
        (f"inpainting: {PAIR}", pipe(PAIR, image=small, mask_image=upper, seed=3).images[0]),
    ]
    return [
        [(CIRCLE, circle), (STAR, star), (SMALL, small)],
        painted,
        inpainted,
    ]


def sheet(rows: Sequence[Row], size: int = 128) -> Image.Image:
    """The rows on a white page, each picture over its words."""
    across, tall = max(len(row) for row in rows), size + 60
    page = Image.new("RGB", (8 + across * (size + 8), 8 + len(rows) * tall), "white")
    draw = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, (words, picture) in enumerate(row):
            corner = (8 + x * (size + 8), 8 + y * tall)
            page.paste(picture, corner)
            lines = textwrap.fill(words, width=22)
            draw.multiline_text((corner[0], corner[1] + size + 2), lines, fill="black", font_size=11, spacing=1)
    return page


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Paint the gallery of tasks with the demonstration model.")
    parser.add_argument("--output", type=Path, default=Path("docs/gallery.png"))
    said = parser.parse_args()
    sheet(rows_of(calotype.load("demo"))).save(said.output)


if __name__ == "__main__":
    main()
