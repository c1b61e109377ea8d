"""Held-out figures: PSNR of a sampler's images to those of the full schedule, and of its rivals with as many calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calotype.errors import SamplerError
from calotype.sampling.compile import compile_sampler
from calotype.sampling.fewer_calls import best_forecast
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedulers import SchedulerLike

from .runs import Floats, Runs

# Deterministic samplers of one call a step that people use at few steps.
PLAIN = ("dpm++2m-karras", "dpm++2m", "unipc")
MAX_DB = 100.0


def psnr_each(images: Floats, expected: Floats) -> list[float]:
    """Return the PSNR of each image in dB, at most 100.  # [n, 3, H, W] in [0, 1]"""
    errors = ((images.astype(np.float64) - expected) ** 2).reshape(len(images), -1).mean(axis=1)
    return [float(each) for each in np.minimum(-10 * np.log10(np.maximum(errors, 1e-30)), MAX_DB)]


def summary(decibels: list[float]) -> dict[str, float]:
    """Return median, tenth percentile and worst value."""
    return {
        "median": round(float(np.median(decibels)), 2),
        "p10": round(float(np.quantile(decibels, 0.1)), 2),
        "worst": round(min(decibels), 2),
    }


class HeldOut:
    """Held-out prompts with their images of the full schedule."""

    def __init__(self, runs: Runs, full: SamplerMatrix) -> None:
        self._runs = runs
        self._expected = runs.decode(runs.play(full).latents)

    def figures(self, sampler: SamplerMatrix) -> dict[str, float]:
        """Return the PSNR of a sampler's images to those of the full schedule."""
        images = self._runs.decode(self._runs.play(sampler).latents)
        return summary(psnr_each(images, self._expected))


def rivals(
    scheduler: SchedulerLike, plain: Sequence[str], config: Mapping[str, Any], full: SamplerMatrix, calls: int
) -> Iterator[tuple[str, SamplerMatrix]]:
    """Yield the rivals with as many network calls and their names: plain samplers, and the best forecast."""
    named = {"the same sampler": scheduler, **{name: name for name in plain}}
    seen: list[SamplerMatrix] = []
    for name, each in named.items():
        try:
            sampler = compile_sampler(each, calls, base_config=config)
        except SamplerError:
            continue  # it cannot make so few steps
        if not isinstance(sampler, SamplerMatrix) or sampler.draws or sampler.calls != calls:
            continue
        if not any(np.array_equal(sampler.rows, other.rows) for other in seen):
            seen.append(sampler)
            yield name, sampler
    yield "forecast", best_forecast(full, calls)
