"""Capacity hint for a full device: estimate how many images, or which smaller size, would fit.

The estimate is the largest array of a run that grows with the image (`Load`), without attention scores, which no GPU
backend keeps. It is compared only with itself: the request that failed calibrates it.
"""

from __future__ import annotations

from ..cuda.device import free_bytes
from ..errors import DeviceFullError
from ..plan.plan import Plan
from ..request.resolved import ResolvedRequest
from ..system.memory import peak_bytes

_FITTING_SHARE = 0.75  # of the estimate that did not fit: libraries need memory too
_FP16 = "a lower precision takes less memory: load(MODEL, precision='fp16'), or --precision fp16"
_INT8 = "a plan in int8 takes less memory: calotype build MODEL --backend tensorrt --precision int8"
_NOTHING = "no image of this model fits into the GPU memory that is free"
_LOWER = {"fp32": _FP16, "fp16": _INT8, "bf16": _INT8}  # the U-Net's precision -> a hint
_SIDE_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


def suggest_fitting_size(
    plan: Plan, *, batch: int, height: int, width: int, guided: bool, free_bytes: int | None
) -> str:
    """Return a hint of what would fit, as text, after `batch` images of this size in pixels did not."""
    loads = [load for load in plan.loads if not load.squared]

    def need(count: int, tall: int, wide: int) -> int:
        return peak_bytes(loads, batch=count, height=tall, width=wide, guided=guided)

    limit = need(batch, height, width) * _FITTING_SHARE
    limit = limit if free_bytes is None else min(limit, free_bytes)
    for count in range(batch - 1, 0, -1):
        if need(count, height, width) <= limit:
            return f"{count} of {width}x{height} pixels at once would fit"
    for share in _SIDE_SHARES:
        multiple = plan.profile.multiple
        tall, wide = (int(side * share) // multiple * multiple for side in (height, width))
        inside = plan.profile.height.min <= tall and plan.profile.width.min <= wide
        if inside and need(1, tall, wide) <= limit:
            return f"one of {wide}x{tall} pixels would fit"
    return _LOWER.get(plan.components["unet"].artifacts[0].precision, _NOTHING)


def with_fitting_size(full: DeviceFullError, plan: Plan, request: ResolvedRequest) -> DeviceFullError:
    """Return the error with the hint of what would fit."""
    size = {"batch": len(request.seeds), "height": request.height, "width": request.width}
    hint = suggest_fitting_size(plan, **size, guided=request.guided, free_bytes=(free := free_bytes()))
    message, data = f"{str(full).rstrip('.')}; by an estimate {hint}.", {"hint": hint, "free_bytes": free}
    return DeviceFullError(message, **full.data | data)
