"""Peak arithmetic and memory rates of this machine for each precision: `python -m calotype.benchmarks.measure.peaks`.

Utilization is a share of these peaks, so they must not be lower than what a network reaches. Each peak is the best that
any library reached, on matrix products of several sizes or on a convolution of a U-Net. It is the best of all
repetitions and not their mean, because noise and other load only slow a run down. The rounds continue until no figure
improves, so a busy machine gets more time. A child process measures, so its thread settings do not affect the caller.

A multiply-add counts as two operations; a copy counts the bytes read and the bytes written. On two cores of an EPYC
(AVX-512 VNNI and BF16), fp32 reached 0.46, bf16 0.86 and int8 1.85 TFLOP/s in three runs within 4 % of each other,
while other programs used the same cores; with less load 0.48, 0.97 and 1.96. One thread reached 0.27, 0.52 and 1.06, so
two undisturbed threads may reach an eighth more. Copies share the memory and reached 17 to 67 GB/s. This module does
not know networks.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.system import threads as cores

from .system_load import LoadMonitor, cache_bytes, disturbed
from .trial import PRECISIONS, Peak, PeakTrial

_SIZES = (512, 1024, 2048)  # of square products
_SLICE_S = 0.05  # one trial in one round
_SETTLED_ROUNDS, _BETTER = 3, 1.01  # stop after this many rounds in which no figure improved by 1 %
_MAX_SECONDS = 25.0  # for all rounds
_COPY_BYTES = 128 << 20
# Flags of /proc/cpuinfo that show native arithmetic: x86, then Arm.
_NATIVE = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"}}


def measure(*, threads: int, device: str = "cpu") -> dict[str, float | None]:
    """Return operations a second by precision, and bytes a second for "copy".

    `device` has torch's names: "cpu", "cuda", "cuda:1".
    """
    return {name: peak.value for name, peak in measure_peaks(threads=threads, device=device).items()}


def measure_peaks(*, threads: int, device: str = "cpu") -> dict[str, Peak]:
    """Return the same peaks with the trial that reached each, or the reason why one is missing."""
    done = run_in_subprocess(
        "measuring the peaks", "calotype.benchmarks.measure.peaks:peaks_here", threads=threads, device=device
    )
    return {name: Peak(**fields) for name, fields in done.value.items()}


def peaks_here(*, threads: int, device: str) -> dict[str, dict[str, Any]]:
    """Measure in this process. This changes torch's settings."""
    import torch

    torch.set_num_threads(threads)
    if device == "cpu":
        peaks = _on_cpu(threads)
    else:
        from . import gpu_peaks

        peaks = gpu_peaks.measure(torch.device(device))
    return {name: asdict(peak) for name, peak in peaks.items()}


def best(trials: Mapping[str, list[PeakTrial]]) -> dict[str, Peak]:
    """Return the fastest repetition of the trials of each name."""
    top = dict.fromkeys(trials, Peak())
    for trial in (t for each in trials.values() for t in each):
        trial.run()
    settled, ends = 0, time.perf_counter() + _MAX_SECONDS
    while settled < _SETTLED_ROUNDS and time.perf_counter() < ends:
        settled += 1
        for name, each in trials.items():
            for trial in each:
                rate, before = _fastest(trial), top[name].value or 0.0
                settled = 0 if rate > before * _BETTER else settled
                if rate > before:
                    top[name] = Peak(value=rate, by=trial.name)
    return top


def _fastest(trial: PeakTrial) -> float:
    """Return the work a second of the best repetition in one slice of time; at least one repetition runs."""
    fastest, ends = float("inf"), time.perf_counter() + _SLICE_S
    while True:
        began = time.perf_counter()
        trial.run()
        now = time.perf_counter()
        fastest = min(fastest, now - began)
        if now > ends:
            return trial.work / fastest


def _on_cpu(threads: int) -> dict[str, Peak]:
    flags = _flags()
    peaks = {n: Peak(reason=f"x86 and Arm processors do not compute in {n}") for n in ("tf32", "fp8")}
    trials: dict[str, list[PeakTrial]] = {}
    for name in ("fp32", "bf16", "fp16", "int8"):
        if name in _NATIVE and not _NATIVE[name] & flags:
            peaks[name] = Peak(reason=f"this processor does not compute in {name}")
        else:
            trials[name] = [*_torch_trials(name), *_openvino_trials(name, threads)]
    peaks |= best({**trials, "copy": _copies()})
    return {name: peaks[name] for name in (*PRECISIONS, "copy")}


def _flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return {word for line in file if line.lower().startswith(("flags", "features")) for word in line.split()}
    except OSError:
        return set()


def _torch_trials(precision: str) -> list[PeakTrial]:
    import torch

    if precision == "int8":
        return [_int8_product(n) for n in _SIZES]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trials = [_torch_product(n, dtype) for n in _SIZES]
    # A convolution of a U-Net, in the layout that oneDNN prefers.
    shapes = ((1, 256, 16, 16), (256, 256, 3, 3))
    x, w = (torch.randn(s).to(dtype).to(memory_format=torch.channels_last) for s in shapes)
    work = 2 * 16 * 16 * 256 * 256 * 9
    return [*trials, PeakTrial(name="torch, convolution", work=work, run=partial(torch.conv2d, x, w, padding=1))]


def _torch_product(n: int, dtype: Any) -> PeakTrial:
    """Return a product by oneDNN. In float32 torch uses MKL, which is half as fast on CPUs that are not Intel's."""
    import torch

    a = torch.randn(n, n).to(dtype)
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        run = partial(torch.ops.aten.mkldnn_linear, a.to_mkldnn(), a)
    else:
        run = partial(torch.mm, a, a, out=torch.empty_like(a))
    return PeakTrial(name=f"torch, product {n}", work=2 * n**3, run=run)


def _int8_product(n: int) -> PeakTrial:
    import torch

    a = torch.randint(-128, 128, (n, n), dtype=torch.int8)
    return PeakTrial(name=f"torch, product {n}", work=2 * n**3, run=partial(torch._int_mm, a, a))


def _openvino_trials(precision: str, threads: int) -> list[PeakTrial]:
    """Return OpenVINO's trials; [] if it is not installed or lacks the precision."""
    from calotype.backends import unavailable

    if unavailable("openvino") or precision == "fp16":
        return []
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    return [_openvino_product(n, precision, settings) for n in _SIZES]


def _openvino_product(n: int, precision: str, settings: Mapping[str, Any]) -> PeakTrial:
    import importlib

    import numpy as np

    from calotype.backends.openvino.network import library

    openvino = library()
    ops = importlib.import_module("openvino.opset13")
    numbers = np.random.default_rng(0)
    x = parameter = ops.parameter([n, n], np.float32)
    weights = numbers.standard_normal((n, n), dtype=np.float32)
    if precision == "int8":  # OpenVINO fuses this into an integer product
        low, high = np.float32(-4), np.float32(4 * 127 / 128)
        x = ops.fake_quantize(x, low, high, low, high, 256)
        rounded = ops.constant(np.clip(np.round(weights * 32), -127, 127).astype(np.int8))
        product = ops.matmul(
            x, ops.multiply(ops.convert(rounded, np.float32), np.full((n, 1), 1 / 32, np.float32)), False, True
        )
    else:
        product = ops.matmul(x, ops.constant(weights), False, True)
    core = openvino.Core()
    request = core.compile_model(openvino.Model([product], [parameter]), "CPU", dict(settings)).create_infer_request()
    request.set_input_tensor(openvino.Tensor(numbers.standard_normal((n, n), dtype=np.float32)))
    return PeakTrial(name=f"OpenVINO, product {n}", work=2 * n**3, run=request.infer)


def _copies() -> list[PeakTrial]:
    import torch

    size = max(_COPY_BYTES, 4 * (cache_bytes() or 0))
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return [PeakTrial(name="torch, copy", work=2 * size, run=partial(target.copy_, source))]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Measure the peaks of this machine. Print a table, and JSON in the last line."
    )
    parser.add_argument("--threads", type=int, default=cores.available())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    monitor = LoadMonitor([os.getpid()])  # a child process measures them
    peaks = measure_peaks(threads=options.threads, device=options.device)
    load = monitor.stop()
    for name, peak in peaks.items():
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        print(f"{name:5} {peak.reason or f'{(peak.value or 0) / 1e9:9.1f} {unit}  {peak.by}'}")
    if disturbed(load.share):
        print(f"Other programs used {load.share:.2f} cores during the measurement; the true peaks may be higher.")
    print(json.dumps({name: peak.value for name, peak in peaks.items()}))


if __name__ == "__main__":
    main()
