"""What the approximations gain, and what they make of the picture: rows of a table for the docs.

    python -m calotype.benchmarks.scripts.approximate PLAN... [--pictures 12] [--steps 20] [-o docs/approximate.md]

The suite gives no figure of speed to a contender whose picture is below its gate; whoever asks for an approximation has
left that gate knowingly, and wants both figures side by side. Each plan paints the same prompts and seeds in turns, as
it is and with each approximation. Pictures are held against those that eager PyTorch makes in float32.
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
class Row:
    """One plan with one setting: the seconds of each picture, and how near each came."""

    plan: str
    setting: str
    seconds: list[float] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)


def measure(
    plans: Sequence[str], *, pictures: int, steps: int, settings: Sequence[Mapping[str, Any]] = SETTINGS
) -> list[Row]:
    """Paint in turns; the first plan's first setting is what the others' speed is held against."""
    case = Case(prompts=pictures, steps=steps)
    asked = [
        {"prompt": prompt, "seed": seed, "steps": steps, "scheduler": case.sampler}
        for seed, prompt in enumerate(prompts_of(case))
    ]
    eager = calotype.load(case.model, backend="eager")
    wanted = [_painted(eager, each, {})[1] for each in asked]
    opened = {Path(plan).name: calotype.load(plan) for plan in plans}
    runs = [(Row(plan=name, setting=_words(s)), pipe, s) for name, pipe in opened.items() for s in settings]
    for _, pipe, setting in runs:  # what is compiled for a shape is compiled before the clock runs
        _painted(pipe, asked[0], setting)
    for i, (each, reference) in enumerate(zip(asked, wanted, strict=True)):
        for row, pipe, setting in runs if i % 2 else reversed(runs):
            took, got = _painted(pipe, each, setting)
            row.seconds.append(took)
            row.psnr_db.append(psnr(got, reference, peak=255))
            row.ssim.append(ssim(got, reference))
    return [row for row, _, _ in runs]


def table(rows: Sequence[Row]) -> str:
    """In Markdown: the seconds, the ratios to the first row picture by picture, and the worst and usual picture."""
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


def _painted(pipe: Any, asked: Mapping[str, Any], setting: Mapping[str, Any]) -> tuple[float, NDArray[np.uint8]]:
    began = time.perf_counter()
    (image,) = pipe(**asked, **setting).images
    return time.perf_counter() - began, np.asarray(image)  # [H, W, 3]


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in setting.items()) or "as it is"


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.median:.2f}"
    return f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed against pictures of the approximations.")
    parser.add_argument("plans", nargs="+", metavar="PLAN", help="of the demonstration model, for the openvino backend")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file, whose table is written anew")
    said = parser.parse_args()
    made = table(measure(said.plans, pictures=said.pictures, steps=said.steps))
    print(made, end="")
    if said.output:
        said.output.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
