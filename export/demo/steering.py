"""`python -m calotype.export.demo.steering`: how well `demo-canny` steers, with figures and a picture.

Held-out scenes are drawn; their captions are painted with the scenes' edges as control image and, from the same seeds,
without. The edges of what was painted are held against the edges given. Prints JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import calotype
from calotype.images.preprocess import canny

from ..judge import scenes
from ..judge.judge import judge
from .edges import edges_of, f1
from .pages import sheet
from .train import HELD_OUT

Pictures = Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True)
class Steered:
    """Some scenes' captions and edges, and what was painted from them with the edges and without."""

    captions: list[str]
    edges: list[Image.Image]
    given: list[Image.Image]  # with the edges as control image
    without: list[Image.Image]


def held_out_scenes(count: int, first: int = HELD_OUT) -> list[scenes.Scene]:
    """Of captions and seeds that neither the model nor its ControlNet was trained on."""
    return [scenes.draw_scene(s, held_out=True) for s in range(first, first + count)]


def paint(pipe: Any, drawn: Sequence[scenes.Scene], *, batch: int = 8, **arguments: Any) -> Steered:
    """Each scene twice from the seed of its place, in batches."""
    made = Steered(captions=[scenes.caption(s) for s in drawn], edges=[], given=[], without=[])
    made.edges.extend(canny(scenes.render(s)) for s in drawn)
    for start in range(0, len(drawn), batch):
        part = slice(start, start + batch)
        words = made.captions[part]
        seeds = list(range(start, start + len(words)))
        made.given.extend(pipe(words, control_image=made.edges[part], seed=seeds, **arguments).images)
        made.without.extend(pipe(words, seed=seeds, **arguments).images)
    return made


def f1_of(pictures: Pictures, edges: Pictures, tolerance_px: float = 2.0) -> list[float]:
    """For each picture: F1 of its edges against those given."""
    wanted = [np.asarray(each)[..., 0] > 0 for each in edges]
    return [f1(edges_of(p), w, tolerance_px) for p, w in zip(pictures, wanted, strict=True)]


def right(pictures: Pictures, captions: Sequence[str]) -> float:
    """The share of pictures that show their captions, by the pixel judge."""
    return float(np.mean([judge(np.asarray(p), w).right for p, w in zip(pictures, captions, strict=True)]))


def page(made: Steered) -> Image.Image:
    """Edges, picture with them, picture without, side by side with their figures; two scenes a row."""
    cells = []
    figures = zip(f1_of(made.given, made.edges), f1_of(made.without, made.edges), strict=True)
    for i, (reached, chance) in enumerate(figures):
        cells += [
            (made.captions[i], made.edges[i]),
            (f"F1 = {reached:.2f} with edges", made.given[i]),
            (f"F1 = {chance:.2f} without", made.without[i]),
        ]
    return sheet([cells[i : i + 6] for i in range(0, len(cells), 6)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how well the demonstration's ControlNet steers.")
    parser.add_argument("--controlnet", default="demo-canny")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--count", type=int, default=60, help="held-out scenes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=1.0, help="the ControlNet's conditioning scale")
    parser.add_argument("--sheet", type=Path, help="a .png of six scenes besides")
    said = parser.parse_args()
    pipe = calotype.load("demo", controlnet=said.controlnet, backend=said.backend)
    arguments = {"steps": said.steps, "controlnet_conditioning_scale": said.scale}
    made = paint(pipe, held_out_scenes(said.count), **arguments)
    told: dict[str, Any] = {"scenes": said.count, "steps": said.steps, "scale": said.scale, "tolerance_px": 2}
    for name, pictures in (("with", made.given), ("without", made.without)):
        each = f1_of(pictures, made.edges)
        told[name] = {
            "f1": round(float(np.mean(each)), 3),
            "f1_least_tenth": round(float(np.quantile(each, 0.1)), 3),
            "right": round(right(pictures, made.captions), 3),
        }
        print(f"{name} the edges: {told[name]}")
    if said.sheet:
        page(paint(pipe, held_out_scenes(6, HELD_OUT + 1000), **arguments)).save(said.sheet)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
