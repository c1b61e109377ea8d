"""Peak arithmetic and memory rates of this machine for each precision: `python -m calotype.benchmarks.measure.peaks`.

Utilization is a share of these peaks, so they must not be lower than what a network reaches. Each peak is the best that
any library reached in any repetition of its trials, and not their mean, because noise and other load only slow a run
down. The rounds continue until no figure improves, so a busy machine gets more time, and the clocks of a GPU rise. A
child process measures, so its thread settings do not affect the caller.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from calotype.doctor.machine import processor
from calotype.errors import first_line
from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.system import threads as cores

from . import trials
from .system_load import LoadMonitor
from .trials import PeakTrial

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
_SLICE_S = 0.05  # one trial in one round
_SETTLED_ROUNDS, _BETTER = 3, 1.01  # stop after this many rounds in which no figure improved by 1 %
_MAX_SECONDS = 25.0  # for all rounds
# Flags of /proc/cpuinfo that show native arithmetic: x86, then Arm.
_NATIVE = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"}}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One rate, in operations or bytes a second, or None with the reason."""

    value: float | None = None
    by: str = ""  # the trial that reached it
    reason: str = ""


def measure(*, threads: int, device: str = "cpu") -> dict[str, float | None]:
    """Return operations a second by precision, and bytes a second for "copy".

    `device` has torch's names: "cpu", "cuda", "cuda:1".
    """
    return {name: peak.value for name, peak in measure_peaks(threads=threads, device=device).items()}


def measure_peaks(*, threads: int, device: str = "cpu") -> dict[str, Peak]:
    """Return the same peaks with the trial that reached each, or the reason why one is missing."""
    function = "calotype.benchmarks.measure.peaks:peaks_here"
    peaks = run_in_subprocess("measuring the peaks", function, threads=threads, device=device).value
    return {name: Peak(**fields) for name, fields in peaks.items()}


def peaks_here(*, threads: int, device: str) -> dict[str, dict[str, Any]]:
    """Measure in this process. This changes torch's settings."""
    import torch

    torch.set_num_threads(threads)
    if device == "cpu":
        peaks = _on_cpu(threads)
    else:
        with torch.cuda.device(device):
            peaks = {name: on_gpu(name, partial(trials.torch_on_gpu, name)) for name in PRECISIONS}
            peaks["copy"] = on_gpu("copy", partial(trials.copies, "cuda"))
    return {name: asdict(peaks[name]) for name in (*PRECISIONS, "copy")}


def _on_cpu(threads: int) -> dict[str, Peak]:
    flags, _ = processor()
    peaks = {n: Peak(reason=f"x86 and Arm processors do not compute in {n}") for n in ("tf32", "fp8")}
    lacking = {name for name, any_of in _NATIVE.items() if not any_of & flags}
    peaks |= {name: Peak(reason=f"this processor does not compute in {name}") for name in lacking}
    names = [name for name in PRECISIONS if name not in peaks]
    work = {name: [*trials.torch_on_cpu(name), *trials.openvino_on_cpu(name, threads)] for name in names}
    return peaks | best({**work, "copy": trials.copies("cpu")}, _host_seconds)


def on_gpu(name: str, make: Callable[[], list[PeakTrial]]) -> Peak:
    """Return the peak of the trials, or the reason why the GPU or this torch lacks it."""
    import torch

    try:
        return best({name: make()}, _gpu_seconds)[name]
    except (RuntimeError, AttributeError, NotImplementedError) as error:  # a full memory is a RuntimeError
        return Peak(reason=first_line(error)[:200])
    finally:
        torch.cuda.empty_cache()


def best(work: Mapping[str, Sequence[PeakTrial]], timer: Callable[[PeakTrial], float]) -> dict[str, Peak]:
    """Return the fastest repetition of the trials of each name. The timer runs a trial and returns its seconds."""
    top = dict.fromkeys(work, Peak())
    for trial in (t for each in work.values() for t in each):
        trial.run()
    settled, ends = 0, time.perf_counter() + _MAX_SECONDS
    while settled < _SETTLED_ROUNDS and time.perf_counter() < ends:
        settled += 1
        for name, each in work.items():
            for trial in each:
                rate, before = trial.work / _fastest(trial, timer), top[name].value or 0.0
                settled = 0 if rate > before * _BETTER else settled
                if rate > before:
                    top[name] = Peak(value=rate, by=trial.name)
    return top


def _fastest(trial: PeakTrial, timer: Callable[[PeakTrial], float]) -> float:
    """Return the seconds of the best repetition in one slice of time; at least one repetition runs."""
    ends, fastest = time.perf_counter() + _SLICE_S, timer(trial)
    while time.perf_counter() < ends:
        fastest = min(fastest, timer(trial))
    return fastest


def _host_seconds(trial: PeakTrial) -> float:
    began = time.perf_counter()
    trial.run()
    return time.perf_counter() - began


def _gpu_seconds(trial: PeakTrial) -> float:
    """Return the seconds by the GPU's own clock."""
    import torch

    event: Any = torch.cuda.Event  # torch has no type for it
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    trial.run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the peaks. Print a table, and JSON in the last line.")
    parser.add_argument("--threads", type=int, default=cores.available())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    monitor = LoadMonitor([os.getpid()])  # a child process measures them
    peaks = measure_peaks(threads=options.threads, device=options.device)
    load = monitor.stop()
    for name, peak in peaks.items():
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        print(f"{name:5} {peak.reason or f'{(peak.value or 0) / 1e9:9.1f} {unit}  {peak.by}'}")
    if load.disturbs:
        print(f"Other programs used {load.share:.2f} cores during the measurement; the true peaks may be higher.")
    print(json.dumps({name: peak.value for name, peak in peaks.items()}))


if __name__ == "__main__":
    main()
