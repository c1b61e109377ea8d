"""Compiled samplers, found again: in the plan, in the store by fingerprint, or compiled and kept there.

With a matrix found a picture needs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SamplerError
from ..files.cache import SAMPLERS
from .archive import find_matrix, read_index
from .compile import compile_sampler
from .matrix import Sampler, SamplerMatrix
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .schedulers import SchedulerSpec, spec_from

__all__ = ["SchedulerSpec", "sampler_for"]


def sampler_for(
    scheduler: Any,
    base_config: Mapping[str, Any],
    steps: int,
    folder: Path | None = None,
    course: ScheduleRange = FULL_SCHEDULE,
) -> tuple[SchedulerSpec, Sampler]:
    """The scheduler that is meant, and its compiled form for so many steps, or what `course` walks of them.

    `folder` holds the plan's own samplers.

    Raises:
        SamplerError: the scheduler is unknown, cannot make the schedule, or must be compiled where diffusers is not.
    """
    spec = spec_from(scheduler, base_config)
    if not (scheduler is None or isinstance(scheduler, (str, type, SchedulerSpec))):
        # An object is taken as it is, and may have been changed in ways that its config does not tell.
        return spec, compile_sampler(scheduler, steps, course=course)
    carried = None if folder is None else find_matrix(folder, spec, steps, course)
    if carried is not None:
        return spec, carried
    key = spec.fingerprint(steps, course)
    if (kept := SAMPLERS.read(key)) is not None:
        # The key leaves the name out: two names of one schedule share a matrix.
        return spec, replace(SamplerMatrix.from_bytes(bytes(kept)), name=spec.name)
    _check_tools(spec, steps, folder, course)
    sampler = compile_sampler(scheduler, steps, base_config=base_config, course=course)
    # A class from outside diffusers has a new key each time: nothing would find it again.
    if isinstance(sampler, SamplerMatrix) and not spec.by_hand:
        SAMPLERS.write(key, sampler.to_bytes())
    return spec, sampler


def _check_tools(spec: SchedulerSpec, steps: int, folder: Path | None, course: ScheduleRange) -> None:
    """`SamplerError` with what the plan holds, where a scheduler cannot be compiled here."""
    lacking = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if not lacking:
        return
    stored = () if folder is None else read_index(folder)
    held = f"this plan carries {'; '.join(map(str, stored))}" if stored else "this plan carries none"
    raise SamplerError(
        f"{spec.name} in {steps} steps{_part(course)} has to be compiled, which takes {' and '.join(lacking)}: {held}. "
        "Ask for one of these, or pip install 'calotype[build]', or build the plan with it: calotype build MODEL "
        "--scheduler NAME."
    )


def _part(course: ScheduleRange) -> str:
    if course.begin is not None or course.end is not None:
        return ", cut where it is handed over,"
    return " from a picture" if course.takes_latents else ""
