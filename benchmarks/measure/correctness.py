"""Correctness of a contender's images, compared with those of float32 eager PyTorch for the same prompts and seeds.

A contender has the status "wrong" if its worst image is further away than its precision allows. It then gets no figure
of speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calotype.export.quality.metrics import figures, psnr

from .record import Quality

Pixels = NDArray[np.uint8]  # [N, H, W, 3]

# The lowest allowed PSNR of an image, in dB. Rounding to bytes leaves about 59 dB. bf16 has the default limit of
# `calotype build` (30); int8 has a margin for prompts that its calibration did not see.
MIN_PSNR_DB = {"fp32": 45.0, "fp16": 35.0, "bf16": 30.0}
_DEFAULT_MIN_PSNR_DB = 25.0  # int8, fp8, and the mixes of "auto"
# With random weights, another prompt changes an image by two fifths of its contrast, and a missing ControlNet by one
# seventh. PSNR would not detect this. A float32 image whose values are truncated to bytes, not rounded, has 0.02.
MAX_L2 = {"fp32": 0.03, "fp16": 0.06, "bf16": 0.1}
_DEFAULT_MAX_L2 = 0.12


def min_psnr_db(precision: str) -> float:
    """Return the lowest PSNR in dB that an image in this precision may have."""
    return MIN_PSNR_DB.get(precision, _DEFAULT_MIN_PSNR_DB)


def find_fault(got: Pixels, expected: Pixels, precision: str, *, trained: bool = True) -> str | None:
    """Return what is wrong with one image, or None if it is correct. # [H, W, 3]

    Images of a model that was not `trained` have little contrast, so they must also be close relative to that contrast.
    """
    if got.shape != expected.shape or got.dtype != np.uint8:
        return f"an image of {got.dtype} {list(got.shape)}, expected uint8 {list(expected.shape)}"
    if expected.std() >= 1 and got.std() < 0.05 * expected.std():
        return f"a flat image: a contrast of {got.std():.1f} levels, expected {expected.std():.1f}"
    near, minimum = psnr(got, expected, 255.0), min_psnr_db(precision)
    if near < minimum:
        return f"a wrong image: {near:.1f} dB PSNR to float32 eager, expected {minimum:g} or more"
    error, maximum = contrast_error(got[None], expected[None]), MAX_L2.get(precision, _DEFAULT_MAX_L2)
    if error > maximum and not trained:
        return f"a wrong image: an error of {error:.2f} of the contrast of float32 eager, expected {maximum:g} or less"
    return None


def quality(
    got: Pixels, expected: Pixels, prompts: Sequence[str], *, judged: bool, clip_model: Path | None = None
) -> Quality:
    """Return the quality figures of images, correct or not, with a prompt for each. # [N, H, W, 3]

    `judged` images show prompts that the demonstration model's judge can read.
    """
    available = {"ssim": True, "judge_drop": judged, "clip_drop": clip_model is not None}
    available["lpips"] = importlib.util.find_spec("lpips") is not None
    values = figures(got, expected, prompts, [name for name, usable in available.items() if usable], clip_model)
    return Quality(
        images=len(got),
        psnr_db=values["psnr"],
        psnr_min_db=values["psnr_min"],
        ssim=values["ssim"],
        relative_l2=contrast_error(got, expected),
        lpips=values.get("lpips"),
        clip=values.get("clip"),
        clip_reference=values["clip"] + values["clip_drop"] if "clip" in values else None,
        judge=values.get("judge"),
        judge_reference=values["judge"] + values["judge_drop"] if "judge" in values else None,
    )


def contrast_error(got: Pixels, expected: Pixels) -> float:
    """Return |got - expected| / |expected - its mean|, the error as a share of the contrast.

    It is 0 for two equal flat images.
    """
    error = got.astype(np.float64) - expected.astype(np.float64)
    contrast = expected.astype(np.float64) - expected.mean(axis=(1, 2, 3), keepdims=True)
    size = float(np.linalg.norm(contrast))
    return float(np.linalg.norm(error)) / size if size else float(np.linalg.norm(error) > 0)
