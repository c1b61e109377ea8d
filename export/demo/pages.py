"""Image sheets: rows of images on a white page, each above its caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

Row = Sequence[tuple[str, Image.Image]]  # captions and images


def sheet(rows: Sequence[Row], size: int = 128) -> Image.Image:
    """Draw the rows on a white page; images are `size` pixels wide and high, with their captions below."""
    across, tall = max(len(row) for row in rows), size + 60
    page = Image.new("RGB", (8 + across * (size + 8), 8 + len(rows) * tall), "white")
    draw = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, (caption, image) in enumerate(row):
            corner = (8 + x * (size + 8), 8 + y * tall)
            page.paste(image, corner)
            lines = textwrap.fill(caption, width=22)
            draw.multiline_text((corner[0], corner[1] + size + 2), lines, fill="black", font_size=11, spacing=1)
    return page
