"""Image metrics: similarity to the float32 image, and agreement with the prompt.

Images are uint8 [N, H, W, 3]. PSNR and SSIM are means over the images; `psnr_min` is the worst image's PSNR.
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
    """Return the peak signal-to-noise ratio in dB of arrays with range `peak`; infinity if they are equal."""
    error = float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(a: Pixels, b: Pixels) -> float:
    """Return the structural similarity of two images, -1 to 1 (Wang et al. 2004: Gaussian window 1.5 px, K 0.01, 0.03).

    Args:
        a, b: uint8 [H, W, 3], at least 11 pixels high and wide. The result is the mean over channels and over
            positions whose window is inside the image.
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
    got: Pixels, expected: Pixels, prompts: Sequence[str], metrics: Sequence[str], clip_model: Path | None = None
) -> dict[str, float]:
    """Return the requested metrics (names of `bounds.METRICS`), and always `psnr` and `psnr_min`, the worst image's."""
    # Limited to 100 dB: the infinite PSNR of equal images must not hide the others.
    each = [min(psnr(g, e, 255.0), 100.0) for g, e in zip(got, expected, strict=True)]
    values = {"psnr": float(np.mean(each)), "psnr_min": float(np.min(each))}
    if "ssim" in metrics:
        values["ssim"] = float(np.mean([ssim(g, e) for g, e in zip(got, expected, strict=True)]))
    if "lpips" in metrics:
        values["lpips"] = _lpips(got, expected)
    if "judge_drop" in metrics:
        values["judge"] = _judged(got, prompts)
        values["judge_drop"] = _judged(expected, prompts) - values["judge"]
    if "clip_drop" in metrics:
        values["clip"] = clip_score(got, prompts, clip_model)
        values["clip_drop"] = clip_score(expected, prompts, clip_model) - values["clip"]
    return values


def require(metrics: Sequence[str], *, judged: bool, clip_model: Path | None) -> None:
    """Raise `BuildError` or `InputError` if a metric cannot be measured here. Runs before the work."""
    import importlib.util

    if "lpips" in metrics and importlib.util.find_spec("lpips") is None:
        hint = "pip install lpips"
        raise BuildError(f"lpips is not installed. Run {hint}, or bound psnr or ssim instead.", hint=hint)
    if "judge_drop" in metrics and not judged:
        raise InputError(
            "judge_drop works only with the demonstration model's captions. Bound psnr or ssim instead.",
            argument="max_loss",
            got="judge_drop",
        )
    if "clip_drop" in metrics and clip_model is None:
        raise InputError("clip_drop needs a CLIP model. Pass --clip-model FOLDER.", argument="clip_model")


def _judged(images: Pixels, prompts: Sequence[str]) -> float:
    """Return the share of images that show their caption, by the demonstration model's pixel judge."""
    from ..judge.judge import judge

    return sum(judge(image, prompt).right for image, prompt in zip(images, prompts, strict=True)) / len(prompts)


def _lpips(got: Pixels, expected: Pixels) -> float:
    """Return the mean perceptual distance, AlexNet (Zhang et al. 2018, arXiv 1801.03924)."""
    import lpips
    import torch

    model = lpips.LPIPS(net="alex", verbose=False)
    one, two = (torch.from_numpy(p.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1) for p in (got, expected))
    with torch.inference_mode():
        return float(model(one, two).mean())


def clip_score(images: Pixels, prompts: Sequence[str], folder: Path | None) -> float:
    """Return the mean cosine similarity, -1 to 1, by the CLIP model in `folder` (Radford et al. 2021)."""
    from calotype.images import clip

    return float(clip.clip_score(images, prompts, model=folder).mean()) / 100
