"""Look up compiled samplers: first in the plan, then in the cache by fingerprint; otherwise compile and cache them.

A call with a stored matrix needs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SamplerError
from ..files.cache import SAMPLERS
from ..system.lru_cache import LruCache
from .archive import find_matrix, from_bytes, read_index, to_bytes
from .compile import compile_sampler
from .matrix import Sampler, SamplerMatrix
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .schedulers import SchedulerLike, SchedulerSpec, spec_from

__all__ = ["BuiltSampler", "SamplerCache", "SchedulerSpec", "sampler_for"]

_MAX_SCHEDULES = 32


class BuiltSampler(NamedTuple):
    """A scheduler's spec and its compiled sampler."""

    spec: SchedulerSpec
    sampler: Sampler


def sampler_for(
    scheduler: Any,
    base_config: Mapping[str, Any],
    steps: int,
    folder: Path | None = None,
    schedule_range: ScheduleRange = FULL_SCHEDULE,
) -> BuiltSampler:
    """Return a scheduler's compiled sampler.

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
        return BuiltSampler(spec, compile_sampler(scheduler, steps, schedule_range=schedule_range))
    if folder is not None and (stored := find_matrix(folder, spec, steps, schedule_range)) is not None:
        return BuiltSampler(spec, stored)
    key = spec.fingerprint(steps, schedule_range)
    if (cached := SAMPLERS.read(key)) is not None:
        # The key does not contain the name: two names of one schedule share a matrix.
        return BuiltSampler(spec, from_bytes(bytes(cached), name=spec.name))
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        part = " from an image" if schedule_range.takes_latents else ""
        if schedule_range.begin is not None or schedule_range.end is not None:
            part = " with denoising_start or denoising_end"
        if schedule_range.is_custom:
            part = " with timesteps, sigmas or eta"
        stored_names = "" if folder is None else "; ".join(map(str, read_index(folder)))
        raise SamplerError(
            f"Cannot compile {spec.name} in {steps} steps{part}: {' and '.join(missing)} not installed. This plan "
            f"carries {stored_names or 'none'}. Use one of these, or pip install 'calotype[build]', or build the plan "
            "with this scheduler: calotype build MODEL --scheduler NAME.",
            scheduler=spec.name,
            steps=steps,
        )
    sampler = compile_sampler(scheduler, steps, base_config=base_config, schedule_range=schedule_range)
    # A class from outside diffusers has a new key each time, so a cached matrix would never be read.
    if isinstance(sampler, SamplerMatrix) and not spec.by_hand:
        SAMPLERS.write(key, to_bytes({"": sampler}))
    return BuiltSampler(spec, sampler)


class SamplerCache:
    """The samplers of one model that calls used last. Threads may share it."""

    def __init__(self, base_config: Mapping[str, Any], folder: Path | None) -> None:
        """Take the model's `scheduler_config.json`, and the plan's `samplers` folder."""
        self._base_config, self._folder = base_config, folder
        self._samplers: LruCache[BuiltSampler] = LruCache(_MAX_SCHEDULES)

    def running_itself(
        self, scheduler: SchedulerLike, steps: int, schedule_range: ScheduleRange, reason: str
    ) -> BuiltSampler:
        """Return a sampler that runs the scheduler's own code, for a `reason`. Raises `SamplerError`."""
        base = self._base_config
        sampler = compile_sampler(scheduler, steps, base_config=base, schedule_range=schedule_range, own_code=reason)
        return BuiltSampler(spec_from(scheduler, base), sampler)

    def __call__(self, scheduler: SchedulerLike, steps: int, schedule_range: ScheduleRange) -> BuiltSampler:
        """Return a scheduler's compiled sampler, as `sampler_for` does. Raises `SamplerError`."""

        def find() -> BuiltSampler:
            return sampler_for(scheduler, self._base_config, steps, self._folder, schedule_range)

        name = scheduler.to_json() if isinstance(scheduler, SchedulerSpec) else scheduler
        if name is None or isinstance(name, str):
            return self._samplers((type(scheduler), name, steps, schedule_range), find)
        return find()  # an object may have changed since its last call
