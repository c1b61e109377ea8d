"""Builders of runs that were not measured, for tests of their readers."""

from pathlib import Path

import numpy as np
from PIL import Image

from calotype.benchmarks.measure.interval import of_median
from calotype.benchmarks.measure.record import (
    IMAGES_FOLDER,
    ComponentTime,
    Quality,
    Ratio,
    ResultRow,
    Run,
    RunRecord,
    Speed,
    file_name,
)

CASE = {"model": "demo", "task": "text-to-image", "height": 128, "width": 128, "batch": 1, "steps": 20}
CASE |= {"sampler": "dpm++2m", "guidance": 5.0, "controlnets": []}
BASE = "diffusers:fp32"


def speed(samples) -> Speed:
    low, median, high = map(float, np.quantile(samples, (0.1, 0.5, 0.9)))
    return Speed(
        samples_s=tuple(map(float, samples)),
        median_s=median,
        p10_s=low,
        p90_s=high,
        images_per_s=1 / median,
        it_per_s=21 / median,
    )


def ratio(base, samples, name=BASE) -> Ratio:
    interval = of_median([b / s for b, s in zip(base, samples, strict=True)])
    low, high = interval.low or 0.0, interval.high or 9.0
    verdict = "ahead" if low > 1 else "behind" if high < 1 else "level" if interval.low else "unknown"
    return Ratio(
        base=name,
        median=interval.median,
        low=interval.low,
        high=interval.high,
        coverage=interval.coverage,
        rounds=len(samples),
        verdict=verdict,
    )


def samples(median: float, count: int = 12, seed: int = 0, noise: float = 0.02) -> tuple[float, ...]:
    return tuple(median * np.exp(np.random.default_rng(seed).normal(0, noise, count)))


def quality(psnr: float, **more) -> Quality:
    return Quality(
        **{"images": 8, "psnr_db": psnr, "psnr_min_db": psnr - 3, "ssim": 0.9876, "relative_l2": 0.01} | more
    )


def row(contender: str, seconds: float | None = 0.2, psnr: float | None = 60.0, **more) -> ResultRow:
    """Return a complete row; without `seconds` one that has no speed."""
    timed = {}
    if seconds is not None:
        times = samples(seconds)
        parts = {"text_encoder": 0.05, "unet": 0.8, "vae_decoder": 0.12}
        timed = {
            "speed": speed(times),
            "parts": {
                n: ComponentTime(calls=1, median_s=s * seconds, flops=10**9, utilization=0.4) for n, s in parts.items()
            },
            "utilization": 0.4321,
            "first_s": seconds * 3,
        }
    timed |= {"case": CASE, "case_id": "demo-128", "maker": contender.split(":")[0], "status": "ok"}
    timed |= {"backend": contender.split(":")[-2], "precision": contender.split(":")[-1], "threads": 2}
    timed |= {"host_peak_bytes": 700 * 2**20, "load_s": 1.5, "quality": None if psnr is None else quality(psnr)}
    return ResultRow(contender=contender, **timed | more)


def run(**more) -> Run:
    values = {
        "preset": "quick",
        "command": "python -m calotype.benchmarks --preset quick",
        "date": "2026-11-24T10:00:00Z",
    }
    values |= {"version": "0.1.0", "commit": "0123456789abcdef+", "device": "A Processor (2 cores)", "threads": 2}
    values |= {"machine": {"cores": 2, "memory_bytes": 2**33}, "versions": {"python": "3.11.7", "torch": "2.13.0"}}
    values |= {"peaks": {"fp32": 1.5e11, "bf16": 4.0e11, "int8": None, "copy": 1.1e10}, "seconds": 101.0}
    return Run(**values | more)


def recorded(*rows: ResultRow, folder: Path | None = None, **more) -> RunRecord:
    return RunRecord(run=run(**more), rows=rows, folder=folder)


def save_images(folder: Path, case_id: str, contender: str, images) -> None:
    """Save uint8 images as a run does."""
    place = folder / IMAGES_FOLDER / file_name(case_id)
    place.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(place / f"{file_name(contender)}-{i}.png", compress_level=1)
