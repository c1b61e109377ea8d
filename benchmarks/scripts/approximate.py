"""Speed and image quality of the approximations, as a table for the documentation.

    python -m calotype.benchmarks.scripts.approximate PLAN... [--images 12] [--steps 20] [-o docs/approximate.md]

The suite gives no figure of speed to a contender whose images miss its limit. An approximation misses it on purpose,
and its user needs both figures. Each plan of the demonstration model generates the same prompts and seeds in turns,
without settings and with each approximation. The images are compared with those of eager PyTorch in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calotype
from calotype.export.quality.metrics import psnr, ssim

from ..measure.interval import of_median
from ..suite.cases import Case, prompts_of

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    *({"cache_interval": interval} for interval in (2, 3, 5)),
    *({"guidance_interval": interval} for interval in ((0.0, 0.5), (0.2, 0.8))),
    {"cache_interval": 2, "guidance_interval": (0.2, 0.8)},
)
HEADS = ("plan", "setting", "seconds", "times faster", "worst PSNR, dB", "median PSNR, dB", "worst SSIM")


@dataclass(kw_only=True)
class ApproximationRow:
    """One plan with one setting: the seconds and the quality of each image."""

    plan: str
    setting: str
    seconds: list[float] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)


def measure(
    plans: Sequence[str], *, images: int, steps: int, settings: Sequence[Mapping[str, Any]] = SETTINGS
) -> list[ApproximationRow]:
    """Generate in turns. The speed of the others is relative to the first plan with the first setting."""
    case = Case(prompts=images, steps=steps)
    eager, runs = calotype.load(case.model, backend="eager"), []
    for plan in plans:
        pipe = calotype.load(plan)
        for setting in settings:
            words = ", ".join(f"`{name}={value}`" for name, value in setting.items()) or "none"
            runs.append((ApproximationRow(plan=Path(plan).name, setting=words), pipe, setting))
    for i, prompt in enumerate(prompts_of(case)):
        request = {"prompt": prompt, "seed": i, "steps": steps, "scheduler": case.sampler}
        _, reference = _generate(eager, request)
        for _, pipe, setting in runs if i == 0 else ():  # compile for the shape before the clock starts
            _generate(pipe, {**request, **setting})
        for row, pipe, setting in runs if i % 2 else reversed(runs):
            took, got = _generate(pipe, {**request, **setting})
            row.seconds.append(took)
            row.psnr_db.append(psnr(got, reference, peak=255))
            row.ssim.append(ssim(got, reference))
    return [row for row, _, _ in runs]


def _generate(pipe: calotype.Pipeline, request: Mapping[str, Any]) -> tuple[float, NDArray[np.uint8]]:
    began = time.perf_counter()
    (image,) = pipe(**request).images
    return time.perf_counter() - began, np.asarray(image)  # [H, W, 3]


def table(rows: Sequence[ApproximationRow]) -> str:
    """Return a Markdown table: seconds, ratios to the first row image by image, and the worst and median image."""
    lines = [HEADS, ["---"] * len(HEADS)]
    for row in rows:
        gain = of_median([base / mine for base, mine in zip(rows[0].seconds, row.seconds, strict=True)])
        between = "" if gain.low is None else f" ({gain.low:.2f}–{gain.high:.2f})"
        figures = [f"{statistics.median(row.seconds):.3f}", f"{gain.median:.2f}{between}", f"{min(row.psnr_db):.1f}"]
        figures += [f"{statistics.median(row.psnr_db):.1f}", f"{min(row.ssim):.3f}"]
        lines.append([row.plan, row.setting, *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure speed and image quality of the approximations.")
    parser.add_argument("plans", nargs="+", metavar="PLAN", help="a plan for the openvino backend")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file to overwrite with the table")
    options = parser.parse_args()
    text = table(measure(options.plans, images=options.images, steps=options.steps))
    print(text, end="")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
