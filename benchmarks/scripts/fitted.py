"""The frontier of PSNR against network calls and seconds: fitted samplers and their rivals, on the demonstration model.

    python -m calotype.benchmarks.scripts.fitted -o FOLDER [--scheduler euler] [--steps 20] [--calls 8:10] [--images 24]

All generate the same held-out prompts and seeds in turns. Each image is compared with that of the full schedule, of the
same backend in float32. FOLDER gets frontier.jsonl, and a plot for calls and for seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calotype
from calotype.errors import SamplerError
from calotype.export.quality.metrics import psnr

from ..report.plots import frontier
from ..suite.cases import Case, prompts_of

PLAIN = ("dpm++2m", "dpm++2m-karras", "unipc", "deis")
FITTED, SAME, BEST, FORECAST, CACHE = "fitted", "the same sampler", "best plain sampler", "forecast", "cache_interval"


@dataclass(kw_only=True)
class FrontierPoint:
    """One setting: its line in the plot, its network calls, and the seconds and PSNR of each image.

    `calls` are network calls. With a cache_interval, calls of the network's outer layers count as calls.
    """

    line: str
    setting: Mapping[str, Any]
    calls: int
    seconds: list[float] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return the median seconds, and the median, tenth percentile and worst PSNR."""
        return {
            "median_s": round(statistics.median(self.seconds), 4),
            "median_db": round(statistics.median(self.psnr_db), 2),
            "p10_db": round(float(np.quantile(self.psnr_db, 0.1)), 2),
            "worst_db": round(min(self.psnr_db), 2),
        }


def settings_for(scheduler: str, steps: int, calls: Sequence[int], intervals: Sequence[int]) -> Iterator[FrontierPoint]:
    """Yield the points to measure. The first one is the full schedule."""
    yield FrontierPoint(line="full", setting={"steps": steps}, calls=steps)
    for each in calls:
        yield FrontierPoint(line=FITTED, setting={"steps": steps, "calls": each}, calls=each)
        yield FrontierPoint(line=SAME, setting={"steps": each}, calls=each)
        forecast = {"steps": steps, "calls": each, "calls_from": "forecast"}
        yield FrontierPoint(line=FORECAST, setting=forecast, calls=each)
        for plain in PLAIN:
            if plain != scheduler:
                yield FrontierPoint(line=plain, setting={"steps": each, "scheduler": plain}, calls=each)
    for interval in intervals:
        yield FrontierPoint(line=CACHE, setting={"steps": steps, "cache_interval": interval}, calls=steps)


def fit_all(pipe: calotype.Pipeline, scheduler: str, steps: int, calls: Sequence[int], **options: Any) -> list[int]:
    """Fit the samplers that are not stored yet, and return the calls of those that were not refused."""
    kept = []
    for each in calls:
        try:
            pipe.fit(each, scheduler=scheduler, steps=steps, **options)
            kept.append(each)
        except SamplerError as refused:
            print(f"{each} calls: {refused}")
    return kept


def measure(
    pipe: calotype.Pipeline, points: Sequence[FrontierPoint], scheduler: str, images: int, guidance: float = 5.0
) -> list[FrontierPoint]:
    """Generate every image with every setting, in turns, and return the points with their figures."""
    for i, prompt in enumerate(prompts_of(Case(prompts=images))):
        request = {"prompt": prompt, "seed": i, "scheduler": scheduler, "guidance_scale": guidance}
        for point in points if i == 0 else ():  # compile before the clock starts
            _generate(pipe, {**request, **point.setting})
        got: dict[int, NDArray[np.float32]] = {}
        for place in range(len(points)) if i % 2 else reversed(range(len(points))):
            took, got[place] = _generate(pipe, {**request, **points[place].setting})
            points[place].seconds.append(took)
        for place, point in enumerate(points):
            point.psnr_db.append(100.0 if place == 0 else min(100.0, psnr(got[place], got[0])))
    return list(points)


def _generate(pipe: calotype.Pipeline, request: Mapping[str, Any]) -> tuple[float, NDArray[np.float32]]:
    began = time.perf_counter()
    images = pipe(**request, output_type="np").images
    return time.perf_counter() - began, np.asarray(images[0])


def with_best_plain(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points, with the best of the plain samplers for each number of calls in place of all of them."""
    plain = [point for point in points if point.line in PLAIN]
    best = [
        max((point for point in plain if point.calls == calls), key=lambda point: point.figures()["p10_db"])
        for calls in dict.fromkeys(point.calls for point in plain)
    ]
    kept = [point for point in points if point.line not in PLAIN]
    return kept + [FrontierPoint(**{**vars(point), "line": BEST}) for point in best]


def write(folder: Path, points: Sequence[FrontierPoint], about: Mapping[str, Any]) -> None:
    """Write frontier.jsonl, whose first line is `about`, and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [dict(about), *({**asdict(point), **point.figures()} for point in points)]
    (folder / "frontier.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    shown = [point for point in with_best_plain(points) if point.line != "full"]
    names = [name for name in (FITTED, FORECAST, BEST, SAME, CACHE) if any(point.line == name for point in shown)]
    for axis, words in (
        ("calls", "network calls; fewer is better"),
        ("seconds", "seconds for an image; less is better"),
    ):
        for figure, quality in (("p10_db", "PSNR that nine of ten images reach, dB"), ("median_db", "median PSNR, dB")):
            series = {
                name: [
                    (float(point.calls) if axis == "calls" else point.figures()["median_s"], point.figures()[figure])
                    for point in shown
                    if point.line == name
                ]
                for name in names
                if axis == "seconds" or name != CACHE  # it makes all calls, some of them shorter
            }
            (folder / f"{axis}-{figure.removesuffix('_db')}.png").write_bytes(frontier(series, words, quality))


def table(points: Sequence[FrontierPoint]) -> str:
    """Return a Markdown table of the points."""
    rows = ["| Sampler | Setting | Calls | Seconds | Median, dB | p10, dB | Worst, dB |", f"|{' --- |' * 7}"]
    for point in points:
        each, words = point.figures(), ", ".join(f"{name}={value}" for name, value in point.setting.items())
        numbers = f"{each['median_s']:.3f} | {each['median_db']:.1f} | {each['p10_db']:.1f} | {each['worst_db']:.1f}"
        rows.append(f"| {point.line} | `{words}` | {point.calls} | {numbers} |")
    return "".join(f"{row}\n" for row in rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure PSNR against network calls and seconds.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder for the lines and the plots")
    parser.add_argument("--model", default="demo", help="demo, or a plan of it")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--scheduler", default="euler")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calls", default="6:8:10:12:15")
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    pipe = calotype.load(options.model, backend=options.backend)
    counts = [int(each) for each in options.calls.split(":")]
    calls = fit_all(pipe, options.scheduler, options.steps, counts)
    intervals = (2, 3, 5) if options.backend == "openvino" else ()
    every = settings_for(options.scheduler, options.steps, counts, intervals)
    points = [point for point in every if point.line != FITTED or point.calls in calls]
    points = measure(pipe, points, options.scheduler, options.images)
    about = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    write(options.output, points, about | {"version": calotype.__version__, "date": time.strftime("%Y-%m-%d")})
    print(table(points), end="")


if __name__ == "__main__":
    main()
