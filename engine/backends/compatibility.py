"""Compatibility of a plan's artifacts with this machine. A plan was evaluated with one backend version on one GPU.

ONNX files are portable. A newer runtime may open them, and the report says that the figures come from another version.
An older runtime may lack operators that they use, so it is refused. An engine that was compiled for a GPU needs a GPU
of the same name and the exact version that compiled it.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import PackageNotFoundError, version

from ..plan.command import rebuild_command
from ..plan.plan import Plan
from ..system.nvidia import gpu_name
from .registry import COMPILED, NAMES, backend_of


def incompatibility_reason(plan: Plan) -> str | None:
    """Return why the backend that built the plan cannot run it here, and how to fix that; None if it can."""
    build = plan.build
    if (versions := _versions(plan)) is None:
        return None
    name, required, got = versions
    rebuild = f"build it again here: {rebuild_command(build, plan.model)}"
    gpu = build["machine"].get("gpu")
    if gpu and gpu != (here := gpu_name()):
        return f"the plan was built for {gpu}, and this machine has {here or 'no NVIDIA GPU'}; {rebuild}"
    if got is None or required == got:
        return None  # the backend itself reports that its package is missing
    if name in COMPILED and "version-compatible" not in build.get("engine", ()):
        return f"the plan was compiled by {name} {required}, and {got} is installed here; {rebuild}"
    if _numbers(got) < _numbers(required):
        return (
            f"the plan was built with {name} {required}, and {got} is installed here, which may lack its operators; "
            f"pip install '{backend_of(name).packages[0]}>={required}', or {rebuild}"
        )
    return None


def version_drift_note(plan: Plan) -> str | None:
    """Return the report's note for a backend newer than the one that the plan was evaluated with, or None."""
    if (versions := _versions(plan)) is None:
        return None
    name, evaluated, got = versions
    if got is None or _numbers(got) <= _numbers(evaluated):
        return None
    return f"the plan was evaluated with {name} {evaluated} and runs on {got}, so its figures are of the older version"


def _versions(plan: Plan) -> tuple[str, str, str | None] | None:
    """Return the backend that built the plan, its version, and the one here; None for a backend without a package."""
    name = plan.build.get("backend")
    if name not in NAMES or not backend_of(name).packages:
        return None
    return name, plan.build["needs"][name], installed(name)


@functools.cache  # every report needs it, and reading it takes file accesses
def installed(backend: str) -> str | None:
    """Return the version of the package that a backend runs on, or None if it is not installed."""
    for package in backend_of(backend).packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """Return major and minor version: "2026.4.1-123-abc" -> (2026, 4). Patch releases add no operators."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])
