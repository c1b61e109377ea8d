"""`python -m calotype.export.demo.evaluate`: how often the demonstration model paints what a held-out caption says.

Pictures are made by the pipeline that users have (20 steps, the model's own DPM++ 2M) and judged by the pixel judge;
captions are ones that training never saw. Prints JSON on the last line.
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
    """How many pictures were right, and what was wrong with the others."""

    right: int
    total: int
    wrong: Counter[str]

    @property
    def share(self) -> float:
        """Right ones, 0 to 1."""
        return self.right / self.total


def held_out_captions(things: int, count: int, seed: int = 0) -> list[str]:
    """Different captions of so many things that training never saw."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[scenes.caption(scenes.draw_scene(seed, things, held_out=True))] = None
        seed += 1
    return list(found)


def score(pipe: Any, captions: list[str], *, batch: int = 8, **arguments: Any) -> Score:
    """Paint every caption with the seed of its place, and judge."""
    right, wrong = 0, Counter[str]()
    for start in range(0, len(captions), batch):
        some = captions[start : start + batch]
        made = pipe(some, seed=list(range(start, start + len(some))), **arguments).images
        for picture, words in zip(made, some, strict=True):
            verdict = judge(np.asarray(picture), words)
            right += verdict.right
            wrong.update(name for name in ("background", "count", "colors", "shapes") if not getattr(verdict, name))
            wrong.update(name for name in ("sizes", "relation") if getattr(verdict, name) is False)
    return Score(right=right, total=len(captions), wrong=wrong)


def samples(pipe: Any, captions: list[str], *, columns: int = 4, **arguments: Any) -> Image.Image:
    """The captions' pictures side by side, each over its words."""
    cells = list(zip(captions, pipe(captions, seed=0, **arguments).images, strict=True))
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Judge the demonstration model on captions it was not trained on.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--count", type=int, default=200, help="captions of one thing, and as many of two")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--sheet", type=Path, help="a .png of eight captions and their pictures, besides")
    said = parser.parse_args()
    pipe = calotype.load(said.model, backend=said.backend)
    told: dict[str, Any] = {"model": pipe.plan.model_id, "steps": said.steps, "guidance_scale": said.guidance_scale}
    for name, things in (("one_thing", 1), ("two_things", 2)):
        result = score(
            pipe, held_out_captions(things, said.count), steps=said.steps, guidance_scale=said.guidance_scale
        )
        print(f"{name}: {result.right} of {result.total} right; wrong: {dict(result.wrong)}")
        told[name] = result.share
    if said.sheet:
        words = [*held_out_captions(2, 4, seed=100), *held_out_captions(1, 4, seed=100)]
        samples(pipe, words, steps=said.steps, guidance_scale=said.guidance_scale).save(said.sheet)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
