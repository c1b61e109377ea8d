"""How near a picture is to its float32 self, and whether it still shows what was asked.

Pictures are uint8 [N, H, W, 3]. PSNR and SSIM are means over the pictures; the worst one is told besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import BuildError, InputError

Pixels = NDArray[np.uint8]  # [N, H, W, 3]


def psnr(a: NDArray[Any], b: NDArray[Any], peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of arrays whose range is `peak`; infinite where they are equal."""
    error = float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity of two pictures, from -1 to 1 (Wang et al. 2004: Gaussian window of 1.5 px, K 0.01, 0.03).

    uint8 [H, W, 3], at least 11 pixels each way; the mean over channels and places whose window is inside.
    """
    from scipy.ndimage import gaussian_filter

    def smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
        smoothed: NDArray[np.float64] = gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=3.5)  # 11 x 11
        return smoothed

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(index[5:-5, 5:-5].mean())


def figures(
    got: Pixels, wanted: Pixels, prompts: Sequence[str], metrics: Sequence[str], clip_model: Path | None = None
) -> dict[str, float]:
    """The metrics asked for (names of `loss.METRICS`), psnr always, and `psnr_min`, the worst picture's."""
    each = [
        min(psnr(g, w, 255.0), 100.0) for g, w in zip(got, wanted, strict=True)
    ]  # equal pictures must not drown the rest
    found = {"psnr": float(np.mean(each)), "psnr_min": float(np.min(each))}
    if "ssim" in metrics:
        found["ssim"] = float(np.mean([ssim(g, w) for g, w in zip(got, wanted, strict=True)]))
    if "lpips" in metrics:
        found["lpips"] = _lpips(got, wanted)
    if "judge_drop" in metrics:
        found["judge"] = _judged(got, prompts)
        found["judge_drop"] = _judged(wanted, prompts) - found["judge"]
    if "clip_drop" in metrics:
        found["clip"] = clip_score(got, prompts, clip_model)
        found["clip_drop"] = clip_score(wanted, prompts, clip_model) - found["clip"]
    return found


def require(metrics: Sequence[str], *, judged: bool, clip_model: Path | None) -> None:
    """`BuildError` or `InputError` where a metric cannot be had here: said before the work, not after."""
    import importlib.util

    if "lpips" in metrics and importlib.util.find_spec("lpips") is None:
        raise BuildError("lpips is not installed (pip install lpips); bound psnr or ssim instead.")
    if "judge_drop" in metrics and not judged:
        raise InputError("judge_drop needs the demonstration model's own captions; bound psnr or ssim instead.")
    if "clip_drop" in metrics and clip_model is None:
        raise InputError("clip_drop needs a CLIP model: --clip-model FOLDER.")


def _judged(pictures: Pixels, prompts: Sequence[str]) -> float:
    """The share of pictures that show what their caption says (the demonstration model's pixel judge)."""
    from ..judge.judge import judge

    return sum(judge(p, words).right for p, words in zip(pictures, prompts, strict=True)) / len(prompts)


def _lpips(got: Pixels, wanted: Pixels) -> float:
    """Mean perceptual distance, AlexNet (Zhang et al. 2018, arXiv 1801.03924)."""
    import lpips
    import torch

    model = lpips.LPIPS(net="alex", verbose=False)
    one, two = (torch.from_numpy(p.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1) for p in (got, wanted))
    with torch.inference_mode():
        return float(model(one, two).mean())


def clip_score(pictures: Pixels, prompts: Sequence[str], folder: Path | None) -> float:
    """Mean cosine similarity of pictures and prompts, -1 to 1, by the CLIP model in `folder` (Radford et al. 2021)."""
    from calotype.images import clip

    return float(clip.clip_score(pictures, prompts, model=folder).mean()) / 100
