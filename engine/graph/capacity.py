"""What would fit on a device that was too full for a picture: fewer at once, or smaller ones, by an estimate.

The estimate is the largest array of a run that grows with the picture (`Load`), without attention scores, which no
backend of a GPU keeps. It is only held against itself: a request that failed says how far it is to be believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..cuda.device import free_bytes
from ..errors import DeviceFullError
from ..plan.plan import Plan
from ..request.request import Job
from ..system.memory import peak_bytes

_LESS = 0.75  # of what did not fit, at the most: libraries want room of their own
_HALF = "a plan in a lower precision takes less: calotype build MODEL --precision fp16"
_EIGHT = "a plan in int8 takes less: calotype build MODEL --backend tensorrt --precision int8"
_NOTHING = "no picture of this model fits beside what the GPU holds"
_LOWER = {"fp32": _HALF, "fp16": _EIGHT, "bf16": _EIGHT}  # the U-Net's precision -> what takes less
_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # of a side


def suggest_fitting_size(
    plan: Plan, *, batch: int, height: int, width: int, guided: bool, free_bytes: int | None
) -> str:
    """In words, what of this model fits where `batch` pictures of this size in pixels did not."""
    loads = [load for load in plan.loads if not load.squared]

    def need(count: int, tall: int, wide: int) -> int:
        return peak_bytes(loads, batch=count, height=tall, width=wide, guided=guided)

    asked = need(batch, height, width)
    most = asked * _LESS if free_bytes is None else min(asked * _LESS, free_bytes)
    for count in range(batch - 1, 0, -1):
        if need(count, height, width) <= most:
            return f"{count} of {width}x{height} pixels at once would fit"
    for share in _SHARES:
        tall, wide = (_smaller(side, share, plan.profile.multiple) for side in (height, width))
        inside = plan.profile.height.min <= tall and plan.profile.width.min <= wide
        if inside and need(1, tall, wide) <= most:
            return f"one of {wide}x{tall} pixels would fit"
    return _LOWER.get(plan.components["unet"].artifacts[0].precision, _NOTHING)


def _smaller(side: int, share: float, multiple: int) -> int:
    return int(side * share) // multiple * multiple


@contextmanager
def annotate_out_of_memory(plan: Plan, job: Job) -> Iterator[None]:
    """Inside, a device that is full is told with what would fit."""
    try:
        yield
    except DeviceFullError as full:
        size = {"batch": len(job.seeds), "height": job.height, "width": job.width}
        told = suggest_fitting_size(plan, **size, guided=job.guided, free_bytes=free_bytes())
        raise DeviceFullError(f"{str(full).rstrip('.')}; by an estimate {told}.") from None
