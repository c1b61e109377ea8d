"""`python -m calotype.export.demo.evaluate`: measure how often the demonstration model follows a held-out caption.

The public pipeline generates the images (20 steps, the model's own DPM++ 2M), and the pixel judge judges them.
Training never saw the captions. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import calotype

from ..judge import scenes
from ..judge.judge import judge
from .pages import sheet


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


def held_out_captions(things: int, count: int, seed: int = 0) -> list[str]:
    """Return `count` different held-out captions of `things` things."""
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[scenes.caption(scenes.draw_scene(seed, things, held_out=True))] = None
        seed += 1
    return list(captions)


def score(pipe: Any, captions: list[str], *, batch: int = 8, **arguments: Any) -> Score:
    """Generate an image of every caption, with its index as the seed, and judge it."""
    right, wrong = 0, Counter[str]()
    for start in range(0, len(captions), batch):
        some = captions[start : start + batch]
        images = pipe(some, seed=list(range(start, start + len(some))), **arguments).images
        for image, caption in zip(images, some, strict=True):
            verdict = judge(np.asarray(image), caption)
            right += verdict.right
            wrong.update(name for name in ("background", "count", "colors", "shapes") if not getattr(verdict, name))
            wrong.update(name for name in ("sizes", "relation") if getattr(verdict, name) is False)
    return Score(right=right, total=len(captions), wrong=wrong)


def samples(pipe: Any, captions: list[str], *, columns: int = 4, **arguments: Any) -> Image.Image:
    """Return the captions' images side by side, each above its caption."""
    cells = list(zip(captions, pipe(captions, seed=0, **arguments).images, strict=True))
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Judge the demonstration model on held-out captions.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--count", type=int, default=200, help="captions of one thing, and as many of two")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--sheet", type=Path, help="also write a .png of eight captions and their images")
    args = parser.parse_args()
    pipe = calotype.load(args.model, backend=args.backend)
    settings = {"steps": args.steps, "guidance_scale": args.guidance_scale}
    report: dict[str, Any] = {"model": pipe.plan.model_id, **settings}
    for name, things in (("one_thing", 1), ("two_things", 2)):
        result = score(pipe, held_out_captions(things, args.count), **settings)
        print(f"{name}: {result.right} of {result.total} right; wrong: {dict(result.wrong)}")
        report[name] = result.share
    if args.sheet:
        captions = [*held_out_captions(2, 4, seed=100), *held_out_captions(1, 4, seed=100)]
        samples(pipe, captions, **settings).save(args.sheet)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
