"""A GPU's best, per precision, by torch: large products timed with CUDA events, after the clocks have risen.

Numbers are normally distributed, not zeros: what a product draws in power, and so its clock, depends on its bits.
Knows nothing of networks, and of CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .trial import PRECISIONS, Peak, Trial

_SIZES = (4096, 8192)
_WARM_S, _BUDGET_S = 0.2, 0.6
_LEAST = 5
_COPY_BYTES = 1 << 30


def measure(device: torch.device) -> dict[str, Peak]:
    """Every precision, and the memory's copies; one that this GPU or this torch cannot do has the reason."""
    with torch.cuda.device(device):
        found = {name: _tried(partial(_products, name)) for name in PRECISIONS}
        return {**found, "copy": _tried(_copies)}


def _tried(trials: Callable[[], list[Trial]]) -> Peak:
    try:
        return _best(trials())
    except (
        RuntimeError,
        AttributeError,
        NotImplementedError,
    ) as cannot:  # torch's ways to say so; memory is RuntimeError
        return Peak(reason=(str(cannot).strip().splitlines() or [type(cannot).__name__])[0][:200])
    finally:
        torch.cuda.empty_cache()


def _best(trials: list[Trial]) -> Peak:
    top = Peak()
    for trial in trials:
        _repeat(trial, _WARM_S)
        for seconds in _repeat(trial, _BUDGET_S):
            if top.value is None or trial.work / seconds > top.value:
                top = Peak(value=trial.work / seconds, by=trial.name)
    return top


def _repeat(trial: Trial, budget_s: float) -> list[float]:
    """Seconds of each run on the GPU's own clock."""
    event: Any = torch.cuda.Event  # which torch leaves untyped
    taken: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(taken) < _LEAST or time.perf_counter() < ends:
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        trial.run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return taken


def _products(precision: str) -> list[Trial]:
    trials = []
    for n in _SIZES:
        a, b = torch.randn(n, n, device="cuda"), torch.randn(n, n, device="cuda")
        trials.append(Trial(name=f"torch, product {n}", work=2 * n**3, run=_call(precision, a, b)))
    return trials


def _call(precision: str, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    if precision in ("fp32", "tf32"):
        # For the whole process, which is the peaks' own; set again by each, so that the order does not matter.
        torch.backends.cuda.matmul.fp32_precision = "ieee" if precision == "fp32" else "tf32"
        return lambda: torch.mm(a, b)
    if precision == "int8":
        whole = [(t * 32).clamp(-127, 127).to(torch.int8) for t in (a, b)]
        return lambda: torch._int_mm(whole[0], whole[1].t())
    if precision == "fp8":
        small, one = [t.to(torch.float8_e4m3fn) for t in (a, b)], torch.ones((), device=a.device)
        # The second by columns, as the tensor cores read it; sums as inference does them.
        return lambda: torch._scaled_mm(small[0], small[1].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    half = [t.to(dtype) for t in (a, b)]
    return lambda: torch.mm(half[0], half[1])


def _copies() -> list[Trial]:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return [Trial(name="torch, copy", work=2 * _COPY_BYTES, run=partial(target.copy_, source))]
