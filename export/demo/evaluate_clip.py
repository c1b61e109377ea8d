"""`python -m calotype.export.demo.evaluate_clip`: measure how well `calotype.clip_score` separates the demo's scenes.

Each held-out scene is scored with its own caption, with the caption of another scene, and with every caption that one
wrong word makes false. The last line of output is JSON.
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
    """Return shares and mean scores over `count` held-out scenes.

    `picked` is the share of scenes whose caption scores above all captions with one wrong word; `told` is the share of
    those captions, by the kind of word. `matched` and `mismatched` are the mean scores of scenes with their own
    captions and with another scene's.
    """
    drawn = [scenes.draw_scene(s, held_out=True) for s in range(first, first + count)]
    seen = clip.encode_image([scenes.render(s) for s in drawn])  # [N, D]
    read = clip.encode_text([scenes.caption(s) for s in drawn])  # [N, D]
    scores = 100 * seen @ read.T  # [image, caption]
    above = defaultdict(list)
    picked = []
    for i, scene in enumerate(drawn):
        kinds, words = zip(*wrong_captions(scene), strict=True)
        others = 100 * clip.encode_text(words) @ seen[i]
        picked.append(bool((scores[i, i] > others).all()))
        for kind, other in zip(kinds, others, strict=True):
            above[kind].append(bool(scores[i, i] > other))
    own = np.diag(scores)
    return {
        "scenes": count,
        "matched": round(float(own.mean()), 1),
        "mismatched": round(float(np.roll(scores, 1, axis=1).diagonal().mean()), 1),
        "above_another": round(float((own > np.roll(scores, 1, axis=1).diagonal()).mean()), 3),
        "picked": round(float(np.mean(picked)), 3),
        "told": {kind: round(float(np.mean(each)), 3) for kind, each in above.items()},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the demonstration's CLIP on held-out scenes.")
    parser.add_argument("--model", type=Path, help="a CLIP model's folder (default: the demonstration's)")
    parser.add_argument("--count", type=int, default=300, help="held-out scenes")
    args = parser.parse_args()
    print(json.dumps(measure(Clip(args.model), args.count)))


if __name__ == "__main__":
    main()
