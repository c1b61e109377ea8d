"""Compiled samplers, remembered: on disk by fingerprint, so that a schedule is compiled once a machine.

With a remembered matrix a picture needs neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from calotype.errors import SamplerError
from calotype.home import home, write_whole
from calotype.probe import compile_sampler
from calotype.sampler import Sampler, SamplerMatrix
from calotype.scheduler_names import SchedulerSpec, spec_from

__all__ = ["SchedulerSpec", "sampler_for"]


def sampler_for(scheduler: Any, base_config: Mapping[str, Any], steps: int) -> tuple[SchedulerSpec, Sampler]:
    """The scheduler that is meant, and its compiled form for so many steps."""
    spec = spec_from(scheduler, base_config)
    if not (scheduler is None or isinstance(scheduler, (str, type, SchedulerSpec))):
        # An object is taken as it is, and may have been changed in ways that its config does not tell.
        return spec, compile_sampler(scheduler, steps)
    path = home() / "samplers" / f"{spec.fingerprint(steps)}.npz"
    with suppress(OSError, SamplerError):  # never compiled here, or damaged: compile
        # The key leaves the name out: two names of one schedule share a matrix.
        return spec, replace(SamplerMatrix.from_bytes(path.read_bytes()), name=spec.name)
    sampler = compile_sampler(scheduler, steps, base_config=base_config)
    # A class from outside diffusers has a new key each time: nothing would find it again.
    if isinstance(sampler, SamplerMatrix) and not spec.by_hand:
        with suppress(OSError):  # a cache that cannot be written costs the next start a second, no more
            write_whole(path, sampler.to_bytes())
    return spec, sampler
