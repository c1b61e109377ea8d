"""`python -m calotype.export.demo.steering`: measure how well `demo-canny` steers, and draw a sheet of examples.

It generates the captions of held-out scenes with the scenes' edges as control images, and from the same seeds without,
and compares the edges of the results with the control images. The last line of output is JSON.
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

Images = Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True)
class SteeringImages:
    """Captions and edges of scenes, and the images generated from them with the edges and without."""

    captions: list[str]
    edges: list[Image.Image]
    controlled: list[Image.Image]  # with the edges as control image
    uncontrolled: list[Image.Image]


def held_out_scenes(count: int, first: int = HELD_OUT) -> list[scenes.Scene]:
    """Return scenes that the training of the model and its ControlNet never used."""
    return [scenes.draw_scene(s, held_out=True) for s in range(first, first + count)]


def generate(pipe: Any, drawn: Sequence[scenes.Scene], *, batch: int = 8, **arguments: Any) -> SteeringImages:
    """Generate each scene with its edges and without, with its index as the seed."""
    captions = [scenes.caption(s) for s in drawn]
    edges = [canny(scenes.render(s)) for s in drawn]
    result = SteeringImages(captions=captions, edges=edges, controlled=[], uncontrolled=[])
    for start in range(0, len(drawn), batch):
        part = slice(start, start + batch)
        seeds = list(range(start, start + len(captions[part])))
        result.controlled.extend(pipe(captions[part], control_image=edges[part], seed=seeds, **arguments).images)
        result.uncontrolled.extend(pipe(captions[part], seed=seeds, **arguments).images)
    return result


def f1_of(images: Images, edges: Images, tolerance_px: float = 2.0) -> list[float]:
    """Return for each image the F1 score of its edges against the control image."""
    expected = [np.asarray(each)[..., 0] > 0 for each in edges]
    return [f1(edges_of(image), e, tolerance_px) for image, e in zip(images, expected, strict=True)]


def right(images: Images, captions: Sequence[str]) -> float:
    """Return the share of images that show their captions, by the pixel judge."""
    return float(np.mean([judge(np.asarray(i), c).right for i, c in zip(images, captions, strict=True)]))


def page(result: SteeringImages) -> Image.Image:
    """Draw edges, image with control and image without, with their scores; two scenes per row."""
    cells = []
    scores = zip(f1_of(result.controlled, result.edges), f1_of(result.uncontrolled, result.edges), strict=True)
    for i, (controlled, uncontrolled) in enumerate(scores):
        cells += [
            (result.captions[i], result.edges[i]),
            (f"F1 = {controlled:.2f} with edges", result.controlled[i]),
            (f"F1 = {uncontrolled:.2f} without", result.uncontrolled[i]),
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
    parser.add_argument("--sheet", type=Path, help="also write a .png of six scenes")
    args = parser.parse_args()
    pipe = calotype.load("demo", controlnet=args.controlnet, backend=args.backend)
    arguments = {"steps": args.steps, "controlnet_conditioning_scale": args.scale}
    result = generate(pipe, held_out_scenes(args.count), **arguments)
    report: dict[str, Any] = {"scenes": args.count, "steps": args.steps, "scale": args.scale, "tolerance_px": 2}
    for name, images in (("with", result.controlled), ("without", result.uncontrolled)):
        each = f1_of(images, result.edges)
        report[name] = {
            "f1": round(float(np.mean(each)), 3),
            "f1_least_tenth": round(float(np.quantile(each, 0.1)), 3),
            "right": round(right(images, result.captions), 3),
        }
        print(f"{name} edges: {report[name]}")
    if args.sheet:
        page(generate(pipe, held_out_scenes(6, HELD_OUT + 1000), **arguments)).save(args.sheet)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
