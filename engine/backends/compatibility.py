"""May a plan's artifacts be used on this machine? A plan was proved with one version of a backend, on one kind of GPU.

ONNX files are portable: a newer runtime may open them, and the report says that the figures are another version's; an
older one may lack what they use, and is refused. What was compiled for a GPU is bound to its name and to the exact
version that compiled it.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import PackageNotFoundError, version

from ..plan.command import rebuild_command
from ..plan.plan import Plan
from ..system.nvidia import gpu_name
from . import COMPILED

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "cuda": ("torch",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt-cu13", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx"),
}


def incompatibility_reason(plan: Plan) -> str | None:
    """Why the backend that the plan was built for may not run it here, with what mends it; None where it may."""
    build = plan.build
    name = build.get("backend")
    if name not in _PACKAGES:
        return None
    again = f"build it again here: {rebuild_command(build, plan.model)}"
    gpu = build["machine"].get("gpu")
    if gpu and gpu != (here := gpu_name()):
        return f"the plan was built for {gpu}, and here is {here or 'no NVIDIA GPU'}; {again}"
    wanted, got = build["needs"][name], _installed(name)
    if got is None or wanted == got:
        return None  # what is not installed is told by the backend itself
    if name in COMPILED and "version-compatible" not in build.get("engine", ()):
        return f"the plan was compiled by {name} {wanted}, and here is {got}; {again}"
    if _numbers(got) < _numbers(wanted):
        return (
            f"the plan was built and proved with {name} {wanted}, and here is {got}, which may lack what it uses; "
            f"pip install '{_PACKAGES[name][0]}>={wanted}', or {again}"
        )
    return None


def version_drift_note(plan: Plan) -> str | None:
    """What a report says where the backend is newer than the one that the plan's figures were measured with."""
    name = plan.build.get("backend")
    if name not in _PACKAGES:
        return None
    wanted, got = plan.build["needs"][name], _installed(name)
    if got is None or _numbers(got) <= _numbers(wanted):
        return None
    return f"the plan was proved with {name} {wanted}, and here is {got}: its figures are those of the older one"


def installed(backend: str) -> str | None:
    """The version of what a backend runs on; None where it is not installed."""
    return _installed(backend)


@functools.cache  # every picture's report asks, and it is read from files
def _installed(name: str) -> str | None:
    for package in _PACKAGES[name]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """1.32.0 and 2026.4.1-123-abc as (1, 32) and (2026, 4): patches add nothing that a graph could use."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])
