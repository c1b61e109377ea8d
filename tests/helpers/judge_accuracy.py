"""Measure the accuracy of the judge: true and false captions on clean and on degraded scenes.

A judge that accepts everything is as useless as one that rejects everything, so this module counts both: true captions
that it accepts, and captions with one wrong word that it accepts. It knows scenes and the judge; it knows no model.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from calotype.export.judge import scenes
from calotype.export.judge.judge import compare, parse
from calotype.export.judge.sight import detect
from demo_training.data import wrong_captions

Pixels = NDArray[np.uint8]
Range = tuple[float, float]

GENERATED: Range = (1.0, 1.5)  # pixels: the blur of an image from a small autoencoder, or slightly more
KINDS = ("size", "color", "shape", "background", "relation")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Results of the judge on some scenes. All are shares in [0, 1] except the last two."""

    right: float  # true captions that it accepts
    fooled: dict[str, float]  # by the kind of changed word: scenes for which it accepts a changed caption
    ms: float  # processor time per image
    psnr_db: float  # of the images against the clean scenes


def degrade(pixels: Pixels, seed: int, blur: Range = GENERATED) -> Pixels:
    """Degrade a scene as a small generator might: blur, tint, blotches, noise, specks and JPEG artifacts."""
    rng = np.random.default_rng([seed, 0xB10])
    sigma = rng.uniform(*blur)
    soft = ndimage.gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0))
    tinted = soft * rng.uniform(0.95, 1.03, 3) + rng.uniform(-6, 6, 3)
    blotches = ndimage.gaussian_filter(rng.normal(0, 1, soft.shape), (8, 8, 0), mode="wrap")
    noisy = tinted + 5 * blotches / blotches.std() + rng.normal(0, rng.uniform(4, 6), soft.shape)
    for y, x in rng.integers(0, min(soft.shape[:2]) - 3, (4, 2)):
        noisy[y : y + 3, x : x + 3] += rng.uniform(-120, 120, 3)
    return _through_jpeg(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), quality=int(rng.integers(40, 70)))


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def measure(seeds: range, blur: Range | None = None) -> Rates:
    """Measure the judge on the scenes of `seeds`: clean, or degraded with a blur from this range in pixels."""
    right, spent, squares = 0, 0.0, 0.0
    had: Counter[str] = Counter()
    fooled: Counter[str] = Counter()
    for seed in seeds:
        scene = scenes.draw_scene(seed)
        clean = scenes.render(scene)
        pixels = clean if blur is None else degrade(clean, seed, blur)
        squares += float(np.mean((pixels.astype(np.float64) - clean) ** 2))
        began = time.process_time()
        seen = detect(pixels)
        right += compare(seen, parse(scenes.caption(scene))).right
        spent += time.process_time() - began
        wrong = list(wrong_captions(scene))
        had.update({kind for kind, _ in wrong})
        fooled.update({kind for kind, caption in wrong if compare(seen, parse(caption)).right})
    return Rates(
        right=right / len(seeds),
        fooled={kind: fooled[kind] / max(1, had[kind]) for kind in KINDS},
        ms=1000 * spent / len(seeds),
        psnr_db=float("inf") if not squares else 10 * float(np.log10(255**2 * len(seeds) / squares)),
    )


def confusion(seeds: range, blur: Range) -> Counter[tuple[str, str]]:
    """Count (drawn, detected) shapes of single things under a blur; "none" without a clear shape or a single thing."""
    counts: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        scene = scenes.draw_scene(seed, count=1)
        seen = detect(degrade(scenes.render(scene), seed, blur)).things
        counts[scene.things[0].shape, (seen[0].shape or "none") if len(seen) == 1 else "none"] += 1
    return counts
