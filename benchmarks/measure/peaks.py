"""`python -m calotype.benchmarks.measure.peaks`: what this machine's arithmetic and memory do at their best, per
precision.

Utilisation is held against these, so they must be no lower than what a network reaches: each is the best that any of
the libraries reached on products of several sizes or on a convolution of a U-Net, of all repetitions: the most, not the
mean, as noise and other load only take away. It goes round until nothing gets better, so that a busy machine, which
leaves but some of many short repetitions alone, is given longer. Measured in a child process: its threads are its own.

Operations are two for each multiply-add, copies are bytes read plus bytes written. On two cores of an EPYC (AVX-512
VNNI and BF16) fp32 reached 0.46, bf16 0.86 and int8 1.85 TFLOP/s in three runs, within 4 % of each other though other
programs wanted the same cores; with less of them, 0.48, 0.97 and 1.96. One thread reached 0.27, 0.52 and 1.06: two left
alone may reach an eighth more. Copies share the memory, and went at 17 to 67 GB/s. Knows nothing of networks.
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
from calotype.system import threads as here

from .system_load import Watch, cache_bytes, disturbed
from .trial import PRECISIONS, Peak, Trial

_SIZES = (512, 1024, 2048)  # of square products
_SLICE_S = 0.05  # for one trial in one round
_SETTLED_ROUNDS, _BETTER = 3, 1.01  # ended when so many rounds in a row brought no figure forward by 1 %
_MOST_S = 25.0  # all rounds together
_COPY_BYTES = 128 << 20
# The processor's arithmetic, by the flags of /proc/cpuinfo: x86, then Arm.
_NATIVE = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"}}


def measure(*, threads: int, device: str = "cpu") -> dict[str, float | None]:
    """Operations a second by precision, and "copy" in bytes a second. `device` is torch's: "cpu", "cuda", "cuda:1"."""
    return {name: peak.value for name, peak in measured(threads=threads, device=device).items()}


def measured(*, threads: int, device: str = "cpu") -> dict[str, Peak]:
    """The same, with whose they are and why one is missing."""
    done = run_in_subprocess(
        "measuring the peaks", "calotype.benchmarks.measure.peaks:peaks_here", threads=threads, device=device
    )
    return {name: Peak(**said) for name, said in done.value.items()}


def peaks_here(*, threads: int, device: str) -> dict[str, dict[str, Any]]:
    """In this process, which is left with other settings of torch than it had."""
    import torch

    torch.set_num_threads(threads)
    if device == "cpu":
        found = _on_cpu(threads)
    else:
        from . import gpu_peaks

        found = gpu_peaks.measure(torch.device(device))
    return {name: asdict(peak) for name, peak in found.items()}


def best(trials: Mapping[str, list[Trial]]) -> dict[str, Peak]:
    """The fastest repetition of each name's trials."""
    top = dict.fromkeys(trials, Peak())
    for trial in (t for each in trials.values() for t in each):
        trial.run()
    settled, ends = 0, time.perf_counter() + _MOST_S
    while settled < _SETTLED_ROUNDS and time.perf_counter() < ends:
        settled += 1
        for name, each in trials.items():
            for trial in each:
                rate, before = _fastest(trial), top[name].value or 0.0
                settled = 0 if rate > before * _BETTER else settled
                if rate > before:
                    top[name] = Peak(value=rate, by=trial.name)
    return top


def _fastest(trial: Trial) -> float:
    """Work a second in the best repetition of one slice of time, which has one at least."""
    least, ends = float("inf"), time.perf_counter() + _SLICE_S
    while True:
        began = time.perf_counter()
        trial.run()
        now = time.perf_counter()
        least = min(least, now - began)
        if now > ends:
            return trial.work / least


def _on_cpu(threads: int) -> dict[str, Peak]:
    flags = _flags()
    found = {n: Peak(reason=f"no x86 or Arm processor computes in {n}") for n in ("tf32", "fp8")}
    trials: dict[str, list[Trial]] = {}
    for name in ("fp32", "bf16", "fp16", "int8"):
        if name in _NATIVE and not _NATIVE[name] & flags:
            found[name] = Peak(reason=f"this processor does not compute in {name}")
        else:
            trials[name] = [*_torch_trials(name), *_openvino_trials(name, threads)]
    found |= best({**trials, "copy": _copies()})
    return {name: found[name] for name in (*PRECISIONS, "copy")}


def _flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return {word for line in file if line.lower().startswith(("flags", "features")) for word in line.split()}
    except OSError:
        return set()


def _torch_trials(precision: str) -> list[Trial]:
    import torch

    if precision == "int8":
        return [_int8_product(n) for n in _SIZES]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trials = [_torch_product(n, dtype) for n in _SIZES]
    # As in a U-Net, in a layout that oneDNN likes.
    shapes = ((1, 256, 16, 16), (256, 256, 3, 3))
    x, w = (torch.randn(s).to(dtype).to(memory_format=torch.channels_last) for s in shapes)
    work = 2 * 16 * 16 * 256 * 256 * 9
    return [*trials, Trial(name="torch, convolution", work=work, run=partial(torch.conv2d, x, w, padding=1))]


def _torch_product(n: int, dtype: Any) -> Trial:
    """By oneDNN: in float32 torch asks MKL by itself, which is half as fast on processors that are not Intel's."""
    import torch

    a = torch.randn(n, n).to(dtype)
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        run = partial(torch.ops.aten.mkldnn_linear, a.to_mkldnn(), a)
    else:
        run = partial(torch.mm, a, a, out=torch.empty_like(a))
    return Trial(name=f"torch, product {n}", work=2 * n**3, run=run)


def _int8_product(n: int) -> Trial:
    import torch

    a = torch.randint(-128, 128, (n, n), dtype=torch.int8)
    return Trial(name=f"torch, product {n}", work=2 * n**3, run=partial(torch._int_mm, a, a))


def _openvino_trials(precision: str, threads: int) -> list[Trial]:
    """None where it is not installed, or has no such arithmetic."""
    from calotype.backends.openvino import runner as vino

    if vino.unavailable() or precision == "fp16":
        return []
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    return [_openvino_product(n, precision, settings) for n in _SIZES]


def _openvino_product(n: int, precision: str, settings: Mapping[str, Any]) -> Trial:
    import importlib

    import numpy as np

    from calotype.backends.openvino import runner as vino

    openvino = vino.library()
    ops = importlib.import_module("openvino.opset13")
    numbers = np.random.default_rng(0)
    x = given = ops.parameter([n, n], np.float32)
    weights = numbers.standard_normal((n, n), dtype=np.float32)
    if precision == "int8":  # what it fuses into an integer product
        low, high = np.float32(-4), np.float32(4 * 127 / 128)
        x = ops.fake_quantize(x, low, high, low, high, 256)
        whole = ops.constant(np.clip(np.round(weights * 32), -127, 127).astype(np.int8))
        product = ops.matmul(
            x, ops.multiply(ops.convert(whole, np.float32), np.full((n, 1), 1 / 32, np.float32)), False, True
        )
    else:
        product = ops.matmul(x, ops.constant(weights), False, True)
    core = openvino.Core()
    request = core.compile_model(openvino.Model([product], [given]), "CPU", dict(settings)).create_infer_request()
    request.set_input_tensor(openvino.Tensor(numbers.standard_normal((n, n), dtype=np.float32)))
    return Trial(name=f"OpenVINO, product {n}", work=2 * n**3, run=request.infer)


def _copies() -> list[Trial]:
    import torch

    size = max(_COPY_BYTES, 4 * (cache_bytes() or 0))
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return [Trial(name="torch, copy", work=2 * size, run=partial(target.copy_, source))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure this machine's peaks: a table, and JSON in the last line.")
    parser.add_argument("--threads", type=int, default=here.available())
    parser.add_argument("--device", default="cpu")
    said = parser.parse_args()
    watch = Watch([os.getpid()])  # they are measured in a child
    found = measured(threads=said.threads, device=said.device)
    load = watch.stop()
    for name, peak in found.items():
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        print(f"{name:5} {peak.reason or f'{(peak.value or 0) / 1e9:9.1f} {unit}  {peak.by}'}")
    if disturbed(load.share):
        print(f"Something else used {load.share:.2f} cores meanwhile: the true peaks may be higher.")
    print(json.dumps({name: peak.value for name, peak in found.items()}))


if __name__ == "__main__":
    main()
