"""Compiling a plan's samplers beforehand, so that it paints where neither torch nor diffusers is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calotype.errors import SamplerError
from calotype.probe import compile_sampler
from calotype.sampler import SamplerMatrix
from calotype.sampler_store import StoredScheduler, write_matrices
from calotype.scheduler_names import SchedulerSpec, spec_from

__all__ = ["STEPS", "SamplersReport", "store_samplers"]

STEPS: Sequence[int] = range(1, 51)  # what is compiled where nothing is said


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
) -> SamplersReport:
    """Compile schedulers into a plan's `samplers` folder, one file each with all step counts.

    Args:
        folder: the `samplers` folder; made where there is none.
        base_config: the model's `scheduler_config.json`.
        schedulers: names as `spec_from` takes them; None is the model's own.
        steps: the step counts. One that the scheduler cannot make is left out.

    Raises:
        SamplerError: a name is unknown, or a scheduler cannot make any of the step counts.
    """
    wanted = sorted(set(steps))
    specs = {spec.key(): spec for spec in (spec_from(name, base_config) for name in schedulers)}  # two names, one key
    stored, left_out = [], {}
    for spec in specs.values():
        matrices, reasons = _compiled(spec, wanted)
        if reasons:
            left_out[spec.name] = "; ".join(dict.fromkeys(reasons.values()))
        if matrices:
            stored.append(write_matrices(folder, spec, matrices, version("diffusers")))
        elif not _runs_itself(reasons):
            raise SamplerError(next(iter(reasons.values()), f"no step counts were given for {spec.name}."))
    return SamplersReport(stored=tuple(stored), left_out=left_out)


_ITSELF = "the scheduler itself must run, which takes torch and diffusers: "


def _runs_itself(reasons: Mapping[int, str]) -> bool:
    return any(reason.startswith(_ITSELF) for reason in reasons.values())


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
