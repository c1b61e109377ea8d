"""Speed and image quality of the approximations, as a table for the documentation.

    python -m calotype.benchmarks.scripts.approximate PLAN... [--pictures 12] [--steps 20] [-o docs/approximate.md]

The suite gives no figure of speed to a contender whose images miss its limit. An approximation misses it on purpose,
and its user needs both figures. Each plan generates the same prompts and seeds in turns, without settings and with each
approximation. The images are compared with those of eager PyTorch in float32.
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

from ..measure.interval import Interval, of_median
from ..suite.cases import Case, prompts_of

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"cache_interval": 2},
    {"cache_interval": 3},
    {"cache_interval": 5},
    {"guidance_interval": (0.0, 0.5)},
    {"guidance_interval": (0.2, 0.8)},
    {"cache_interval": 2, "guidance_interval": (0.2, 0.8)},
)


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
    requests = [
        {"prompt": prompt, "seed": seed, "steps": steps, "scheduler": case.sampler}
        for seed, prompt in enumerate(prompts_of(case))
    ]
    eager = calotype.load(case.model, backend="eager")
    references = [_generate(eager, each, {})[1] for each in requests]
    opened = {Path(plan).name: calotype.load(plan) for plan in plans}
    runs = [
        (ApproximationRow(plan=name, setting=_words(s)), pipe, s) for name, pipe in opened.items() for s in settings
    ]
    for _, pipe, setting in runs:  # compile for the shape before the clock starts
        _generate(pipe, requests[0], setting)
    for i, (each, reference) in enumerate(zip(requests, references, strict=True)):
        for row, pipe, setting in runs if i % 2 else reversed(runs):
            took, got = _generate(pipe, each, setting)
            row.seconds.append(took)
            row.psnr_db.append(psnr(got, reference, peak=255))
            row.ssim.append(ssim(got, reference))
    return [row for row, _, _ in runs]


def table(rows: Sequence[ApproximationRow]) -> str:
    """Return a Markdown table: seconds, ratios to the first row image by image, and the worst and median image."""
    lines = [
        "| plan | setting | seconds | times faster | worst PSNR, dB | median PSNR, dB | worst SSIM |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gained = of_median([base / mine for base, mine in zip(rows[0].seconds, row.seconds, strict=True)])
        lines.append(
            f"| {row.plan} | {row.setting} | {statistics.median(row.seconds):.3f} | {_interval(gained)} "
            f"| {min(row.psnr_db):.1f} | {statistics.median(row.psnr_db):.1f} | {min(row.ssim):.3f} |"
        )
    return "\n".join(lines) + "\n"


def _generate(pipe: Any, requests: Mapping[str, Any], setting: Mapping[str, Any]) -> tuple[float, NDArray[np.uint8]]:
    began = time.perf_counter()
    (image,) = pipe(**requests, **setting).images
    return time.perf_counter() - began, np.asarray(image)  # [H, W, 3]


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in setting.items()) or "none"


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.median:.2f}"
    return f"{interval.median:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure speed and image quality of the approximations.")
    parser.add_argument(
        "plans", nargs="+", metavar="PLAN", help="a plan of the demonstration model for the openvino backend"
    )
    parser.add_argument("--pictures", dest="images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file to overwrite with the table")
    options = parser.parse_args()
    text = table(measure(options.plans, images=options.images, steps=options.steps))
    print(text, end="")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
