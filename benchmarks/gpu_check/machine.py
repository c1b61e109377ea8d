"""Stages about the machine and the kernels: its rates, compilation, and tests of correctness."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from calotype.cuda import attention
from calotype.errors import first_line
from calotype.kernels import attention as ours
from calotype.kernels.launch import Launch

from ..op_trace.networks import CASES, trace
from ..op_trace.recorder import ATTENTION
from .device import Device

_NODES = (1, 100, 10_000)
_COMPILERS = 14
_TESTS = ("kernels", "test_fused.py", "test_cuda_backend.py", "test_graph_runner.py", "test_graph_pipeline.py")


def environment(device: Device) -> dict[str, Any]:
    """Return versions, the rates of copies and products, and what a node of a graph costs."""
    import diffusers
    import transformers
    import triton

    packages = (torch, triton, diffusers, transformers)
    versions = {each.__name__: each.__version__ for each in packages} | {"python": sys.version.split()[0]}
    lines = [" ".join(f"{name} {version}" for name, version in versions.items())]
    results: dict[str, Any] = {"versions": versions, "cores": os.cpu_count()}
    if device.on_gpu:
        card = torch.cuda.get_device_properties(0)
        results |= {"card": card.name, "multiprocessors": card.multi_processor_count, "bytes": card.total_memory}
        results["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        lines.append(f"{card.name}, {card.multi_processor_count} multiprocessors, cuDNN {results['cudnn']}")
    side, numbers = (64, 1 << 16) if device.tiny else (8192, 1 << 30)
    a, b = device.normal(side, side), device.normal(side, side)
    results["product_flops"] = 2 * side**3 / device.seconds(lambda: a @ b)
    source, target = (torch.empty(numbers, dtype=torch.uint8, device=device.name) for _ in range(2))
    results["copy_bytes_per_s"] = 2 * numbers / device.seconds(lambda: target.copy_(source))
    small = torch.zeros(1, device=device.name)
    nodes = _NODES[:1] if device.tiny else _NODES
    results["node_us"] = {n: 1e6 * device.seconds(partial(_repeated, small, n)) / n for n in nodes}
    rates = results["product_flops"] / 1e12, results["copy_bytes_per_s"] / 1e12
    lines.append(f"product of bfloat16 {rates[0]:.0f} TFLOP/s, copy {rates[1]:.2f} TB/s")
    lines.append("a node of a graph, us: " + ", ".join(f"{us:.2f} of {n}" for n, us in results["node_us"].items()))
    return {**results, "lines": lines}


def _repeated(x: torch.Tensor, count: int) -> None:
    for _ in range(count):
        x.add_(1)


def compilation(device: Device) -> dict[str, Any]:
    """Compile every kernel that the full-size networks launch, in several processes with a shared cache."""
    names = ("taesd", "vae-512") if device.tiny else tuple(CASES)
    capability = 90
    if device.on_gpu:
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    workers = 1 if device.tiny else min(_COMPILERS, os.cpu_count() or 1)
    began = time.perf_counter()
    if workers == 1:
        parts = [compile_share(names, capability, 0, 1, most=2)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(partial(compile_share, names, capability, of=workers), range(workers)))
    failed = [line for _, errors in parts for line in errors]
    count = sum(each for each, _ in parts)
    seconds = time.perf_counter() - began
    lines = [f"{count} kernels compiled for sm_{capability} in {seconds:.1f} s, {len(failed)} failed"]
    status = {"status": "failed: kernels"} if failed else {}
    return {"compiled": count, "failed": failed, **status, "lines": [*lines, *failed[:5]]}


def compile_share(
    names: tuple[str, ...], capability: int, share: int = 0, of: int = 1, most: int | None = None
) -> tuple[int, list[str]]:
    """Compile some of the networks' kernels; return how many, and a line for each that failed."""
    import triton
    from triton.backends.compiler import GPUTarget

    launches = launches_of(names)[share::of][:most]
    errors = []
    for launch in launches:
        try:
            triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options)
        except Exception as failed:  # of any kind: the next kernel is compiled anyway
            errors.append(f"{launch.kernel.__name__}: {first_line(failed)}")
    return len(launches) - len(errors), errors


def launches_of(names: tuple[str, ...]) -> list[Launch]:
    """Return the different launches of some networks, on the meta device."""
    launches: dict[str, Launch] = {}
    for name in names:
        for launch in trace(CASES[name]).launches:
            source = launch.source()
            launches.setdefault(
                f"{launch.kernel.__name__} {source.signature} {source.constants} {source.attrs}", launch
            )
    return list(launches.values())


def correctness(device: Device) -> dict[str, Any]:
    """Run the tests that need a GPU, and compare every attention with the formula at the shapes of the networks."""
    lines: list[str] = []
    results: dict[str, Any] = {}
    folder = Path.cwd() / "tests" / "gpu"
    if folder.is_dir():
        results["tests"] = _tests(folder, device)
        lines.append(results["tests"]["summary"])
        lines += results["tests"]["failed"][:6]
    else:
        lines.append(f"no tests: {folder} is missing; run this in the folder of the bundle")
    compared = attention_errors(device)
    wrong = [each for each in compared if each["usable"] is False]
    missing = sum(each["usable"] is None for each in compared)
    lines.append(f"{len(compared)} attentions compared with float32: {len(wrong)} wrong, {missing} not supported here")
    lines += [f"wrong: {each['kernel']} at {each['shape']}" for each in wrong[:4]]
    status = {"status": "failed: tests"} if results.get("tests", {}).get("exit_code") else {}
    return {**results, **status, "attention": compared, "lines": lines}


def _tests(folder: Path, device: Device) -> dict[str, Any]:
    """Run pytest in a process of its own, which works on the CPU in Triton's interpreter."""
    chosen = ["kernels/test_to_uint8.py"] if device.tiny else list(_TESTS)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={folder}"]
    command += ["-o", "filterwarnings=default", *(str(folder / name) for name in chosen)]
    interpreted = {} if device.on_gpu else {"TRITON_INTERPRET": "1"}
    environment = os.environ | interpreted | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parents[1], env=environment)
    output = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr.strip() or "no output"]
    failed = [line for line in output if re.match(r"(FAILED|ERROR) ", line)]
    return {"summary": output[-1], "failed": failed, "exit_code": done.returncode}


def attention_errors(device: Device) -> list[dict[str, Any]]:
    """Return the relative error of every implementation at every shape of attention."""
    shapes = [(1, 2, 16, 16, 8)] if device.tiny else sorted(_attention_shapes())
    results = []
    for images, heads, queries, keys, width in shapes:
        kind = torch.float32 if device.tiny else torch.bfloat16  # the interpreter cannot multiply bfloat16
        q, k, v = (device.normal(images, n, heads, width, dtype=kind).transpose(1, 2) for n in (queries, keys, keys))
        kernels: dict[str, Callable[..., torch.Tensor]] = dict(attention.TORCH_KERNELS)
        kernels["products"] = attention._products
        if width <= ours.MAX_HEAD_WIDTH:
            kernels["triton"] = lambda q, k, v, scale: ours.attention(q, k, v, scale=scale)
        for name, kernel in kernels.items():
            scale = width**-0.5
            entry: dict[str, Any] = {"shape": [images, heads, queries, keys, width], "kernel": name}
            try:
                entry["usable"] = attention._is_right(q, k, v, scale, partial(kernel, q, k, v, scale))
            except Exception as failed:  # each library raises its own types
                entry |= {"usable": None, "reason": first_line(failed)[:100]}
            results.append(entry)
    return results


def _attention_shapes() -> set[tuple[int, ...]]:
    return {op.shape for name in CASES for op in trace(CASES[name]).ops if op.kind == ATTENTION}
