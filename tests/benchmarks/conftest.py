"""Runs of the suite that nobody measured, for what reads them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from calotype.benchmarks.measure.interval import of_median, quantile
from calotype.benchmarks.measure.record import PICTURES, Part, Quality, Ratio, Recorded, Row, Run, Speed, file_name

CASE = {"model": "demo", "task": "text-to-image", "height": 128, "width": 128, "batch": 1, "steps": 20}
CASE |= {"sampler": "dpm++2m", "guidance": 5.0, "controlnets": []}
BASE = "diffusers:fp32"


def speed(samples) -> Speed:
    median = quantile(samples, 0.5)
    return Speed(
        samples_s=tuple(map(float, samples)),
        median_s=median,
        p10_s=quantile(samples, 0.1),
        p90_s=quantile(samples, 0.9),
        images_per_s=1 / median,
        it_per_s=21 / median,
    )


def ratio(base, samples, name=BASE) -> Ratio:
    found = of_median([b / s for b, s in zip(base, samples, strict=True)])
    low, high = found.low or 0.0, found.high or 9.0
    verdict = "ahead" if low > 1 else "behind" if high < 1 else "level" if found.low else "unknown"
    return Ratio(
        base=name,
        median=found.median,
        low=found.low,
        high=found.high,
        coverage=found.coverage,
        rounds=len(samples),
        verdict=verdict,
    )


def samples(median: float, count: int = 12, seed: int = 0, noise: float = 0.02) -> tuple[float, ...]:
    return tuple(median * np.exp(np.random.default_rng(seed).normal(0, noise, count)))


def quality(psnr: float, **more) -> Quality:
    return Quality(
        **{"pictures": 8, "psnr_db": psnr, "psnr_min_db": psnr - 3, "ssim": 0.9876, "relative_l2": 0.01} | more
    )


def row(contender: str, seconds: float | None = 0.2, psnr: float | None = 60.0, **more) -> Row:
    """A row with everything measured; without `seconds` one that has no speed."""
    timed = {}
    if seconds is not None:
        times = samples(seconds)
        parts = {"text_encoder": 0.05, "unet": 0.8, "vae_decoder": 0.12}
        timed = {
            "speed": speed(times),
            "parts": {n: Part(calls=1, median_s=s * seconds, flops=10**9, utilisation=0.4) for n, s in parts.items()},
            "utilisation": 0.4321,
            "first_s": seconds * 3,
        }
    timed |= {"case": CASE, "case_id": "demo-128", "maker": contender.split(":")[0], "status": "ok"}
    timed |= {"backend": contender.split(":")[-2], "precision": contender.split(":")[-1], "threads": 2}
    timed |= {"host_peak_bytes": 700 * 2**20, "load_s": 1.5, "quality": None if psnr is None else quality(psnr)}
    return Row(contender=contender, **timed | more)


def run(**more) -> Run:
    said = {
        "preset": "quick",
        "command": "python -m calotype.benchmarks --preset quick",
        "date": "2026-11-24T10:00:00Z",
    }
    said |= {"version": "0.1.0", "commit": "0123456789abcdef+", "device": "A Processor (2 cores)", "threads": 2}
    said |= {"machine": {"cores": 2, "memory_bytes": 2**33}, "versions": {"python": "3.11.7", "torch": "2.13.0"}}
    said |= {"peaks": {"fp32": 1.5e11, "bf16": 4.0e11, "int8": None, "copy": 1.1e10}, "seconds": 101.0}
    return Run(**said | more)


def recorded(*rows: Row, folder: Path | None = None, **more) -> Recorded:
    return Recorded(run=run(**more), rows=rows, folder=folder)


def paint(folder: Path, case_id: str, contender: str, pictures) -> None:
    """Keeps uint8 pictures as a run does."""
    place = folder / PICTURES / file_name(case_id)
    place.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(place / f"{file_name(contender)}-{i}.png", compress_level=1)


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """The builders, as one name."""
    made = (speed, ratio, samples, quality, row, run, recorded, paint)
    return SimpleNamespace(**{f.__name__: f for f in made}, CASE=CASE, BASE=BASE)
