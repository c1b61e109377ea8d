"""Measure the demonstration's networks on captions and scenes that training never used.

The public pipeline generates the images, and the pixel judge judges them. Edges are compared by the F1 score of
segmentation boundaries (Martin et al. 2004) without their one-to-one matching: an edge matches if the other image has
an edge within the tolerance.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from calotype.export.judge import scenes
from calotype.export.judge.judge import judge
from calotype.export.judge.scenes import held_out_captions
from calotype.images.clip import Clip
from calotype.images.preprocess import canny

from .data import HELD_OUT, wrong_captions

__all__ = ["Score", "Steering", "f1", "held_out_captions", "held_out_scenes", "measure_clip", "score", "sheet", "steer"]

Edges = NDArray[np.bool_]  # [H, W]
Captioned = tuple[str, Image.Image]


def held_out_scenes(count: int, skip: int = 0) -> list[scenes.Scene]:
    """Return scenes that no training used."""
    return [scenes.draw_scene(s, held_out=True) for s in range(HELD_OUT + skip, HELD_OUT + skip + count)]


def sheet(cells: Sequence[Captioned], columns: int, size: int = 128) -> Image.Image:
    """Draw images of `size` pixels with their captions below, row by row on a white page."""
    tall = size + 60
    page = Image.new("RGB", (8 + columns * (size + 8), 8 + -(-len(cells) // columns) * tall), "white")
    draw = ImageDraw.Draw(page)
    for i, (caption, image) in enumerate(cells):
        x, y = 8 + i % columns * (size + 8), 8 + i // columns * tall
        page.paste(image, (x, y))
        draw.multiline_text((x, y + size + 2), textwrap.fill(caption, width=22), fill="black", font_size=11, spacing=1)
    return page


# ---------------------------------------------------------------------------------------------------------- captions


@dataclass(frozen=True, kw_only=True)
class Score:
    """The number of images that are right, and the errors of the others."""

    right: int
    total: int
    wrong: Counter[str]

    @property
    def share(self) -> float:
        """The share of images that are right, 0 to 1."""
        return self.right / self.total


def score(pipe: Any, captions: list[str], *, batch: int = 8, **arguments: Any) -> Score:
    """Generate an image of every caption, with its index as the seed, and judge it."""
    right, wrong = 0, Counter[str]()
    for start in range(0, len(captions), batch):
        some = captions[start : start + batch]
        images = pipe(some, seed=list(range(start, start + len(some))), **arguments).images
        for image, caption in zip(images, some, strict=True):
            verdict = judge(np.asarray(image), caption)
            right += verdict.right
            properties = ("background", "count", "colors", "shapes", "sizes", "relation")
            wrong.update(name for name in properties if getattr(verdict, name) is False)
    return Score(right=right, total=len(captions), wrong=wrong)


# ------------------------------------------------------------------------------------------------------------- edges


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Captions and edges of scenes, and the images generated from them with the edges as control image and without."""

    captions: list[str]
    edges: list[Image.Image]
    controlled: list[Image.Image]
    uncontrolled: list[Image.Image]

    def f1(self, images: Sequence[Image.Image]) -> list[float]:
        """Return for each image the F1 score of its edges against the control image."""
        return [f1(edges_of(i), np.asarray(e)[..., 0] > 0) for i, e in zip(images, self.edges, strict=True)]

    @property
    def report(self) -> dict[str, Any]:
        """The F1 scores, and the share of images that show their captions."""
        figures = {}
        for name, images in (("with", self.controlled), ("without", self.uncontrolled)):
            each = self.f1(images)
            right = [judge(np.asarray(i), c).right for i, c in zip(images, self.captions, strict=True)]
            figures[name] = {
                "f1": round(float(np.mean(each)), 3),
                "f1_least_tenth": round(float(np.quantile(each, 0.1)), 3),
                "right": round(float(np.mean(right)), 3),
            }
        return figures

    def page(self) -> Image.Image:
        """Draw edges, image with control and image without, with their scores; two scenes per row."""
        cells: list[Captioned] = []
        scores = zip(self.f1(self.controlled), self.f1(self.uncontrolled), strict=True)
        for i, (controlled, uncontrolled) in enumerate(scores):
            cells.append((self.captions[i], self.edges[i]))
            cells.append((f"F1 = {controlled:.2f} with edges", self.controlled[i]))
            cells.append((f"F1 = {uncontrolled:.2f} without", self.uncontrolled[i]))
        return sheet(cells, columns=6)


def steer(pipe: Any, drawn: Sequence[scenes.Scene], *, batch: int = 8, **arguments: Any) -> Steering:
    """Generate each scene with its edges and without, with its index as the seed."""
    captions = [scenes.caption(s) for s in drawn]
    edges = [canny(scenes.render(s)) for s in drawn]
    result = Steering(captions=captions, edges=edges, controlled=[], uncontrolled=[])
    for start in range(0, len(drawn), batch):
        part = slice(start, start + batch)
        seeds = list(range(start, start + len(captions[part])))
        result.controlled.extend(pipe(captions[part], control_image=edges[part], seed=seeds, **arguments).images)
        result.uncontrolled.extend(pipe(captions[part], seed=seeds, **arguments).images)
    return result


def edges_of(image: Any) -> Edges:
    """Return the edges of an image, with the thresholds of `demo-canny`'s training.  # [H, W, 3] -> [H, W]"""
    return np.asarray(canny(image))[..., 0] > 0


def f1(got: Edges, expected: Edges, tolerance_px: float = 2.0) -> float:
    """Return the F1 score, 0 to 1: the harmonic mean of precision and recall of `got` against `expected`."""
    if not got.any() or not expected.any():
        return float(got.any() == expected.any())
    precision, recall = (
        float((ndimage.distance_transform_edt(~target) <= tolerance_px)[edges].mean())
        for edges, target in ((got, expected), (expected, got))
    )
    return 2 * precision * recall / max(precision + recall, 1e-12)


# -------------------------------------------------------------------------------------------------------------- CLIP


def measure_clip(clip: Clip, drawn: Sequence[scenes.Scene]) -> dict[str, Any]:
    """Return shares and mean scores over scenes.

    `picked` is the share of scenes whose caption scores above all captions with one wrong word; `rejected` is the share
    of those captions that score lower, by the kind of word. `matched` and `mismatched` are the mean scores of scenes
    with their own captions and with another scene's.
    """
    seen = clip.encode_image([scenes.render(s) for s in drawn])  # [N, D]
    scores = 100 * seen @ clip.encode_text([scenes.caption(s) for s in drawn]).T  # [image, caption]
    own, another = scores.diagonal(), np.roll(scores, 1, axis=1).diagonal()
    above = defaultdict(list)
    picked = []
    for i, scene in enumerate(drawn):
        kinds, words = zip(*wrong_captions(scene), strict=True)
        lower = own[i] > 100 * clip.encode_text(words) @ seen[i]
        picked.append(lower.all())
        for kind, each in zip(kinds, lower, strict=True):
            above[kind].append(each)
    return {
        "scenes": len(drawn),
        "matched": round(float(own.mean()), 1),
        "mismatched": round(float(another.mean()), 1),
        "above_another": round(float((own > another).mean()), 3),
        "picked": round(float(np.mean(picked)), 3),
        "rejected": {kind: round(float(np.mean(each)), 3) for kind, each in above.items()},
    }
