"""Are a contender's pictures right? Held against float32 eager's of the same prompts and seeds, by number.

A contender whose worst picture is further away than its precision excuses is *wrong*, and gets no figure of speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calotype.export.quality.metrics import figures, psnr

from .record import Quality

Pixels = NDArray[np.uint8]  # [N, H, W, 3]

# The least PSNR in dB of every picture. Rounding to bytes alone leaves some 59 dB; the lower precisions keep what
# `calotype build` asks of them by default (30), int8 as much again as its calibration may miss on a new prompt.
LEAST_DB = {"fp32": 45.0, "fp16": 35.0, "bf16": 30.0}
_LEAST_DB = 25.0  # int8, fp8, and mixes found by "auto"
# Of weights that nobody trained, another prompt moves a picture by two fifths of its contrast, and a ControlNet that is
# left out by a seventh: PSNR alone would not see it. A float32 picture whose bytes are cut off, not rounded, has 0.02.
MOST_L2 = {"fp32": 0.03, "fp16": 0.06, "bf16": 0.1}
_MOST_L2 = 0.12


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What every contender of a case is held against."""

    prompts: Sequence[str]  # of each picture
    wanted: Pixels
    judged: bool  # the demonstration model's pixel judge can read the prompts
    clip_model: Path | None


def least_db(precision: str) -> float:
    """The PSNR that every picture of this precision must reach."""
    return LEAST_DB.get(precision, _LEAST_DB)


def fault(got: Pixels, wanted: Pixels, precision: str, *, trained: bool = True) -> str | None:
    """What is wrong with one picture, in words; None where it is right.  # [H, W, 3]

    Pictures of weights that nobody `trained` have little contrast, and are held to it as well.
    """
    if got.shape != wanted.shape or got.dtype != np.uint8:
        return f"a picture of {got.dtype} {list(got.shape)} for one of uint8 {list(wanted.shape)}"
    if wanted.std() >= 1 and got.std() < 0.05 * wanted.std():
        return f"a flat picture (a contrast of {got.std():.1f} levels for {wanted.std():.1f})"
    near, least = psnr(got, wanted, 255.0), least_db(precision)
    if near < least:
        return f"a wrong picture: {near:.1f} dB from float32 eager's, {least:g} or more wanted"
    error, most = relative_l2(got[None], wanted[None]), MOST_L2.get(precision, _MOST_L2)
    if error > most and not trained:
        return f"a wrong picture: {error:.2f} of its contrast from float32 eager's, {most:g} or less wanted"
    return None


def quality(got: Pixels, judging: Judging) -> Quality:
    """The figures of right and wrong pictures alike.  # [N, H, W, 3]"""
    metrics = ["ssim", *_optional(judging)]
    found = figures(got, judging.wanted, judging.prompts, metrics, judging.clip_model)
    judge, clip = found.get("judge"), found.get("clip")
    return Quality(
        pictures=len(got),
        psnr_db=found["psnr"],
        psnr_min_db=found["psnr_min"],
        ssim=found["ssim"],
        relative_l2=relative_l2(got, judging.wanted),
        lpips=found.get("lpips"),
        clip=clip,
        clip_reference=None if clip is None else clip + found["clip_drop"],
        judge=judge,
        judge_reference=None if judge is None else judge + found["judge_drop"],
    )


def _optional(judging: Judging) -> list[str]:
    found = ["judge_drop"] if judging.judged else []
    found += ["lpips"] if importlib.util.find_spec("lpips") is not None else []
    return found + (["clip_drop"] if judging.clip_model is not None else [])


def relative_l2(got: Pixels, wanted: Pixels) -> float:
    """|got - wanted| / |wanted - its mean|: the error as a share of the contrast; 0 for two equal flat pictures."""
    error = got.astype(np.float64) - wanted.astype(np.float64)
    contrast = wanted.astype(np.float64) - wanted.mean(axis=(1, 2, 3), keepdims=True)
    size = float(np.linalg.norm(contrast))
    return float(np.linalg.norm(error)) / size if size else float(np.linalg.norm(error) > 0)
