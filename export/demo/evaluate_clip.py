"""`python -m calotype.export.demo.evaluate_clip`: does `calotype.clip_score` tell the demonstration's scenes apart?

Each held-out scene is scored against its caption, against the caption of another scene, and against every caption that
one wrong word makes false. Prints JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from calotype.images.clip import Clip

from ..judge import scenes
from ..judge.validate import wrong_captions
from .train import HELD_OUT


def measure(clip: Clip, count: int, first: int = HELD_OUT) -> dict[str, Any]:
    """Shares and mean scores over so many held-out scenes.

    `picked`: the right caption scores above all with one wrong word. `told`: above each of them, by the kind of word.
    `matched`, `mismatched`: mean scores of the scenes with their own captions, and with another scene's.
    """
    drawn = [scenes.draw_scene(s, held_out=True) for s in range(first, first + count)]
    seen = clip.encode_image([scenes.render(s) for s in drawn])  # [N, D]
    read = clip.encode_text([scenes.caption(s) for s in drawn])  # [N, D]
    scores = 100 * seen @ read.T  # [picture, caption]
    told = defaultdict(list)
    picked = []
    for i, scene in enumerate(drawn):
        kinds, words = zip(*wrong_captions(scene), strict=True)
        others = 100 * clip.encode_text(words) @ seen[i]
        picked.append(bool((scores[i, i] > others).all()))
        for kind, other in zip(kinds, others, strict=True):
            told[kind].append(bool(scores[i, i] > other))
    own = np.diag(scores)
    return {
        "scenes": count,
        "matched": round(float(own.mean()), 1),
        "mismatched": round(float(np.roll(scores, 1, axis=1).diagonal().mean()), 1),
        "above_another": round(float((own > np.roll(scores, 1, axis=1).diagonal()).mean()), 3),
        "picked": round(float(np.mean(picked)), 3),
        "told": {kind: round(float(np.mean(each)), 3) for kind, each in told.items()},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the demonstration's CLIP on held-out scenes.")
    parser.add_argument("--model", type=Path, help="a CLIP model's folder; without it the one that ships")
    parser.add_argument("--count", type=int, default=300, help="held-out scenes")
    said = parser.parse_args()
    print(json.dumps(measure(Clip(said.model), said.count)))


if __name__ == "__main__":
    main()
