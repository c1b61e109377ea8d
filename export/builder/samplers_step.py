"""Read a plan's compiled schedules from the store, or compile them in a child process (which needs torch)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.plan.profile import Range
from calotype.sampling.schedulers import FORMAT

from ..steps.subprocess_task import run_in_subprocess
from ..steps.versions import installed
from ..store.store import ENTRY, fetch, key_of
from .samplers import IMAGE_STEPS


def schedules(folder: Path, config: Mapping[str, Any], names: Sequence[str], steps: Range) -> dict[str, Any]:
    """Fill `folder` with the model's scheduler and the named ones in all step counts.

    Returns:
        By scheduler name, why it or some of its step counts are left out.
    """
    arguments = {"config": dict(config), "names": list(names), "steps": [steps.min, steps.max]}
    key = key_of({**arguments, "pictures": list(IMAGE_STEPS), "format": FORMAT, "diffusers": installed("diffusers")})

    def make(out: Path) -> Mapping[str, Any]:
        done = run_in_subprocess(
            "compiling the schedules", "calotype.export.builder.samplers_step:compile_all", out=str(out), **arguments
        )
        return {"left_out": done.value}

    stored, notes = fetch(key, make, label={"kind": "schedules"})
    shutil.copytree(stored, folder, ignore=shutil.ignore_patterns(ENTRY))
    return dict(notes["left_out"])


def compile_all(*, config: Mapping[str, Any], names: Sequence[str], steps: Sequence[int], out: str) -> dict[str, str]:
    """Write the matrices to `out`. Runs in a child process."""
    from .samplers import store_samplers

    low, high = steps
    report = store_samplers(Path(out), config, schedulers=(None, *names), steps=range(low, high + 1))
    return dict(report.left_out)
