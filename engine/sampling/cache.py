"""Look up compiled samplers: first in the plan, then in the cache by fingerprint; otherwise compile and cache them.

A call with a stored matrix needs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SamplerError
from ..files.cache import SAMPLERS
from ..system.lru_cache import LruCache
from .archive import find_matrix, read_index
from .compile import compile_sampler
from .matrix import Sampler, SamplerMatrix
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .schedulers import SchedulerLike, SchedulerSpec, spec_from

__all__ = ["SamplerCache", "SchedulerSpec", "sampler_for"]

_MAX_SCHEDULES = 32


def sampler_for(
    scheduler: Any,
    base_config: Mapping[str, Any],
    steps: int,
    folder: Path | None = None,
    schedule_range: ScheduleRange = FULL_SCHEDULE,
) -> tuple[SchedulerSpec, Sampler]:
    """Return a scheduler's spec and its compiled sampler.

    Args:
        scheduler: What `spec_from` takes.
        base_config: The model's `scheduler_config.json`.
        steps: The number of steps.
        folder: The plan's `samplers` folder.
        schedule_range: The part of the schedule to run.

    Raises:
        SamplerError: The scheduler is unknown, cannot make the schedule, or needs torch and diffusers to compile.
    """
    spec = spec_from(scheduler, base_config)
    if not (scheduler is None or isinstance(scheduler, (str, type, SchedulerSpec))):
        # Compile an object itself: its config may not show every change made to it.
        return spec, compile_sampler(scheduler, steps, schedule_range=schedule_range)
    stored = None if folder is None else find_matrix(folder, spec, steps, schedule_range)
    if stored is not None:
        return spec, stored
    key = spec.fingerprint(steps, schedule_range)
    if (cached := SAMPLERS.read(key)) is not None:
        # The key does not contain the name: two names of one schedule share a matrix.
        return spec, replace(SamplerMatrix.from_bytes(bytes(cached)), name=spec.name)
    _check_tools(spec, steps, folder, schedule_range)
    sampler = compile_sampler(scheduler, steps, base_config=base_config, schedule_range=schedule_range)
    # A class from outside diffusers has a new key each time, so a cached matrix would never be read.
    if isinstance(sampler, SamplerMatrix) and not spec.by_hand:
        SAMPLERS.write(key, sampler.to_bytes())
    return spec, sampler


class SamplerCache:
    """The samplers of one model that calls used last. Threads may share it."""

    def __init__(self, base_config: Mapping[str, Any], folder: Path | None) -> None:
        """Take the model's `scheduler_config.json`, and the plan's `samplers` folder."""
        self._base_config, self._folder = base_config, folder
        self._samplers: LruCache[tuple[SchedulerSpec, Sampler]] = LruCache(_MAX_SCHEDULES)

    def __call__(
        self, scheduler: SchedulerLike, steps: int, schedule_range: ScheduleRange
    ) -> tuple[SchedulerSpec, Sampler]:
        """Return a scheduler's spec and its compiled sampler, as `sampler_for` does. Raises `SamplerError`."""

        def find() -> tuple[SchedulerSpec, Sampler]:
            return sampler_for(scheduler, self._base_config, steps, self._folder, schedule_range)

        name = scheduler.to_json() if isinstance(scheduler, SchedulerSpec) else scheduler
        if name is None or isinstance(name, str):
            return self._samplers((type(scheduler), name, steps, schedule_range), find)
        return find()  # an object may have changed since its last call


def _check_tools(spec: SchedulerSpec, steps: int, folder: Path | None, schedule_range: ScheduleRange) -> None:
    """Raise a `SamplerError` that lists the plan's samplers if torch or diffusers is missing."""
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if not missing:
        return
    stored = () if folder is None else read_index(folder)
    raise SamplerError(
        f"Cannot compile {spec.name} in {steps} steps{_part(schedule_range)}: {' and '.join(missing)} not installed. "
        f"This plan carries {'; '.join(map(str, stored)) or 'none'}. Use one of these, or pip install "
        "'calotype[build]', or build the plan with this scheduler: calotype build MODEL --scheduler NAME."
    )


def _part(schedule_range: ScheduleRange) -> str:
    if schedule_range.begin is not None or schedule_range.end is not None:
        return " with denoising_start or denoising_end"
    return " from an image" if schedule_range.takes_latents else ""
