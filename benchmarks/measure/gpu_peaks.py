"""Peak arithmetic rates of a GPU for each precision: large matrix products in torch, timed with CUDA events.

The numbers are normally distributed and not zeros, because the bits of a product change its power, and so the clock.
The timing starts after the clocks have risen. This module knows neither networks nor CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .trial import PRECISIONS, Peak, PeakTrial

_SIZES = (4096, 8192)
_WARM_S, _BUDGET_S = 0.2, 0.6
_MIN_REPETITIONS = 5
_COPY_BYTES = 1 << 30


def measure(device: torch.device) -> dict[str, Peak]:
    """Return the peak of every precision and of memory copies. A precision that this GPU or this torch lacks has the
    reason.
    """
    with torch.cuda.device(device):
        peaks = {name: _measure_or_reason(partial(_products, name)) for name in PRECISIONS}
        return {**peaks, "copy": _measure_or_reason(_copies)}


def _measure_or_reason(trials: Callable[[], list[PeakTrial]]) -> Peak:
    try:
        return _best(trials())
    except (
        RuntimeError,
        AttributeError,
        NotImplementedError,
    ) as error:  # torch's errors for a missing type; a full memory is a RuntimeError
        return Peak(reason=(str(error).strip().splitlines() or [type(error).__name__])[0][:200])
    finally:
        torch.cuda.empty_cache()


def _best(trials: list[PeakTrial]) -> Peak:
    top = Peak()
    for trial in trials:
        _repeat(trial, _WARM_S)
        for seconds in _repeat(trial, _BUDGET_S):
            if top.value is None or trial.work / seconds > top.value:
                top = Peak(value=trial.work / seconds, by=trial.name)
    return top


def _repeat(trial: PeakTrial, budget_s: float) -> list[float]:
    """Return the seconds of each run by the GPU's own clock."""
    event: Any = torch.cuda.Event  # torch has no type for it
    taken: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(taken) < _MIN_REPETITIONS or time.perf_counter() < ends:
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        trial.run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return taken


def _products(precision: str) -> list[PeakTrial]:
    trials = []
    for n in _SIZES:
        a, b = torch.randn(n, n, device="cuda"), torch.randn(n, n, device="cuda")
        trials.append(PeakTrial(name=f"torch, product {n}", work=2 * n**3, run=_call(precision, a, b)))
    return trials


def _call(precision: str, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    if precision in ("fp32", "tf32"):
        # A setting of the process, which only measures peaks. Each call sets it, so the order does not matter.
        torch.backends.cuda.matmul.fp32_precision = "ieee" if precision == "fp32" else "tf32"
        return lambda: torch.mm(a, b)
    if precision == "int8":
        rounded = [(t * 32).clamp(-127, 127).to(torch.int8) for t in (a, b)]
        return lambda: torch._int_mm(rounded[0], rounded[1].t())
    if precision == "fp8":
        small, one = [t.to(torch.float8_e4m3fn) for t in (a, b)], torch.ones((), device=a.device)
        # The second matrix is stored by columns, as the tensor cores read it. Accumulation is that of inference.
        return lambda: torch._scaled_mm(small[0], small[1].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    half = [t.to(dtype) for t in (a, b)]
    return lambda: torch.mm(half[0], half[1])


def _copies() -> list[PeakTrial]:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return [PeakTrial(name="torch, copy", work=2 * _COPY_BYTES, run=partial(target.copy_, source))]
