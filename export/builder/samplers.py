"""Compile a plan's samplers ahead of time, so that it generates images without torch and diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calotype.errors import SamplerError
from calotype.plan.profile import Range
from calotype.sampling.archive import StoredScheduler, image_schedule_ranges, write_matrices
from calotype.sampling.compile import compile_sampler
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedule_range import ScheduleRange
from calotype.sampling.schedulers import FORMAT, SchedulerSpec, spec_from

from ..steps.stored_step import StoredStep
from ..steps.versions import installed
from ..store.store import ENTRY

STEPS: Sequence[int] = range(1, 51)  # the default
# The step counts that are also compiled for image-to-image, in every strength: all fifty would take megabytes.
IMAGE_STEPS: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
_NEEDS_SCHEDULER = "the scheduler itself must run, which needs torch and diffusers: "


@dataclass(frozen=True, kw_only=True)
class SamplersReport:
    """The compiled schedulers, and by name why a scheduler or some of its step counts are left out."""

    stored: tuple[StoredScheduler, ...]
    left_out: Mapping[str, str]


def fill_samplers(folder: Path, config: Mapping[str, Any], names: Sequence[str], steps: Range) -> None:
    """Fill `folder` with the model's scheduler and the named ones in all step counts, from the store or compiled."""
    arguments = {"config": dict(config), "names": list(names), "steps": [steps.min, steps.max]}
    tools = {"image_steps": list(IMAGE_STEPS), "format": FORMAT, "diffusers": installed("diffusers")}
    step = StoredStep(depends_on={**arguments, **tools}, label={"kind": "schedules"})
    stored = step.run_in_child("compiling the schedules", f"{__name__}:compile_all", **arguments)
    shutil.copytree(stored.folder, folder, ignore=shutil.ignore_patterns(ENTRY))


def compile_all(*, config: Mapping[str, Any], names: Sequence[str], steps: Sequence[int], out: str) -> dict[str, Any]:
    """Write the matrices to `out`. Runs in a child process, as it needs torch."""
    low, high = steps
    report = store_samplers(Path(out), config, schedulers=(None, *names), steps=range(low, high + 1))
    return {"left_out": dict(report.left_out)}


def store_samplers(
    folder: Path,
    base_config: Mapping[str, Any],
    *,
    schedulers: Sequence[str | None] = (None,),
    steps: Iterable[int] = STEPS,
    image_steps: Iterable[int] = IMAGE_STEPS,
) -> SamplersReport:
    """Compile schedulers into a plan's `samplers` folder, one file each with all step counts.

    Args:
        folder: the `samplers` folder; created if missing.
        base_config: the model's `scheduler_config.json`.
        schedulers: names for `spec_from`; None is the model's own scheduler.
        steps: the step counts. Those that the scheduler does not support are left out.
        image_steps: the step counts that are also compiled for image-to-image.

    Raises:
        SamplerError: a name is unknown, or a scheduler supports none of the step counts.
    """
    requested, for_images = sorted(set(steps)), set(image_steps)
    specs = {spec.key(): spec for spec in (spec_from(name, base_config) for name in schedulers)}  # two names, one key
    stored, left_out = [], {}
    for spec in specs.values():
        matrices: dict[int, SamplerMatrix] = {}
        reasons: dict[str, None] = {}
        for count in requested:
            try:
                sampler = compile_sampler(spec, count)
            except SamplerError as error:
                reasons[str(error)] = None
                continue
            if not isinstance(sampler, SamplerMatrix):  # thresholds, Brownian trees: the same for every step count
                matrices, reasons = {}, {f"{_NEEDS_SCHEDULER}{sampler.reason}": None}
                break
            matrices[count] = sampler
        if reasons:
            left_out[spec.name] = "; ".join(reasons)
        if matrices:
            parts = {n: ranges for n in for_images & set(matrices) if (ranges := _image_to_image(spec, n))}
            stored.append(write_matrices(folder, spec, matrices, version("diffusers"), parts))
        elif not any(reason.startswith(_NEEDS_SCHEDULER) for reason in reasons):
            raise SamplerError(next(iter(reasons), f"cannot compile {spec.name}: steps is empty."), scheduler=spec.name)
    return SamplersReport(stored=tuple(stored), left_out=left_out)


def _image_to_image(spec: SchedulerSpec, steps: int) -> dict[ScheduleRange, SamplerMatrix]:
    """Compile every schedule range that starts from an image; empty if one of them cannot be compiled."""
    matrices = {}
    for schedule_range in image_schedule_ranges(steps):
        try:
            sampler = compile_sampler(spec, steps, schedule_range=schedule_range)
        except SamplerError:
            return {}
        if not isinstance(sampler, SamplerMatrix):
            return {}
        matrices[schedule_range] = sampler
    return matrices
