"""Compiling a plan's samplers beforehand, so that it paints where neither torch nor diffusers is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calotype.errors import SamplerError
from calotype.sampling.archive import StoredScheduler, image_schedule_ranges, write_matrices
from calotype.sampling.compile import compile_sampler
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedule_range import ScheduleRange
from calotype.sampling.schedulers import SchedulerSpec, spec_from

__all__ = ["PICTURE_STEPS", "STEPS", "SamplersReport", "store_samplers"]

STEPS: Sequence[int] = range(1, 51)  # what is compiled where nothing is said
# Of these, what sets out from pictures, in every strength: all fifty would be megabytes.
PICTURE_STEPS: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)


@dataclass(frozen=True, kw_only=True)
class SamplersReport:
    """What came of it: the schedulers kept, and by name why others were not, or not in all step counts."""

    stored: tuple[StoredScheduler, ...]
    left_out: Mapping[str, str]


def store_samplers(
    folder: Path,
    base_config: Mapping[str, Any],
    *,
    schedulers: Sequence[str | None] = (None,),
    steps: Iterable[int] = STEPS,
    pictures: Iterable[int] = PICTURE_STEPS,
) -> SamplersReport:
    """Compile schedulers into a plan's `samplers` folder, one file each with all step counts.

    Args:
        folder: the `samplers` folder; made where there is none.
        base_config: the model's `scheduler_config.json`.
        schedulers: names as `spec_from` takes them; None is the model's own.
        steps: the step counts. One that the scheduler cannot make is left out.
        pictures: those of them in which pictures may be set out from as well.

    Raises:
        SamplerError: a name is unknown, or a scheduler cannot make any of the step counts.
    """
    wanted, from_pictures = sorted(set(steps)), set(pictures)
    specs = {spec.key(): spec for spec in (spec_from(name, base_config) for name in schedulers)}  # two names, one key
    stored, left_out = [], {}
    for spec in specs.values():
        matrices, reasons = _compiled(spec, wanted)
        if reasons:
            left_out[spec.name] = "; ".join(dict.fromkeys(reasons.values()))
        if matrices:
            of_pictures = {n: made for n in from_pictures & set(matrices) if (made := _of_pictures(spec, n))}
            stored.append(write_matrices(folder, spec, matrices, version("diffusers"), of_pictures))
        elif not _runs_itself(reasons):
            raise SamplerError(next(iter(reasons.values()), f"no step counts were given for {spec.name}."))
    return SamplersReport(stored=tuple(stored), left_out=left_out)


_ITSELF = "the scheduler itself must run, which takes torch and diffusers: "


def _runs_itself(reasons: Mapping[int, str]) -> bool:
    return any(reason.startswith(_ITSELF) for reason in reasons.values())


def _of_pictures(spec: SchedulerSpec, steps: int) -> dict[ScheduleRange, SamplerMatrix]:
    """Return all ranges that start from an image, or nothing if one of them cannot be compiled."""
    made = {}
    for schedule_range in image_schedule_ranges(steps):
        try:
            sampler = compile_sampler(spec, steps, schedule_range=schedule_range)
        except SamplerError:
            return {}
        if not isinstance(sampler, SamplerMatrix):
            return {}
        made[schedule_range] = sampler
    return made


def _compiled(spec: SchedulerSpec, steps: Sequence[int]) -> tuple[dict[int, SamplerMatrix], dict[int, str]]:
    """The matrices by step count, and why there is none of others."""
    matrices, reasons = {}, {}
    for count in steps:
        try:
            sampler = compile_sampler(spec, count)
        except SamplerError as failed:
            reasons[count] = str(failed)
            continue
        if not isinstance(sampler, SamplerMatrix):  # thresholds, Brownian trees: the same for every step count
            return {}, {count: f"{_ITSELF}{sampler.reason}"}
        matrices[count] = sampler
    return matrices, reasons
