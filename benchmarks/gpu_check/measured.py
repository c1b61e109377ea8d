"""Stages about the networks: a captured step and its kernels, variants without an optimization, and sweeps."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from calotype.cuda import attention
from calotype.cuda.capture import warm_up, warming_up
from calotype.cuda.step_cache import StepValues
from calotype.errors import first_line
from calotype.kernels import attention as ours
from calotype.system.switches import DISABLE_VARIABLE, OF_CUDA

from ..op_trace.networks import CASES, TINY, Case, build, inputs_of, trace
from ..op_trace.recorder import ATTENTION, CONVOLUTION, PRODUCT, Op
from ..op_trace.time_model import seconds_of, step_seconds
from .device import Device

_OTHERS = ("sdxl", "sd-turbo", "vae-512", "vae-1024", "taesd", "clip-l", "openclip-h", "openclip-g")
_TOP = 12  # kernels of a table


def step(device: Device) -> dict[str, Any]:
    """Measure one guided step of Stable Diffusion 1.5, its kernels, and what each optimization gains."""
    case = TINY["unet"] if device.tiny else CASES["sd15"]
    results = measure(case, device)
    lines = list(results["lines"])
    pieces = ("folded_biases",) if device.tiny else OF_CUDA
    kernels = ("triton",) if device.tiny else ("cudnn", "flash", "efficient", "triton")
    variants: dict[str, float | str] = {}
    for piece in pieces:
        with mock.patch.dict(os.environ, {DISABLE_VARIABLE: piece}):
            variants[f"without {piece}"] = _attempt(lambda: measured_seconds(case, device))
    for name in kernels:
        with only_attention(name):
            variants[f"attention {name}"] = _attempt(lambda: measured_seconds(case, device))
    lines += [f"{name}: {each if isinstance(each, str) else f'{1e3 * each:.3f} ms'}" for name, each in variants.items()]
    return {**results, "variants": variants, "lines": lines}


def others(device: Device) -> dict[str, Any]:
    """Measure the other networks."""
    cases = {"vae": TINY["vae"]} if device.tiny else {name: CASES[name] for name in _OTHERS}
    results: dict[str, Any] = {}
    for name, case in cases.items():
        results[name] = _attempt(lambda case=case: measure(case, device))  # type: ignore[misc]
    lines = [line for each in results.values() for line in (each["lines"][:1] if isinstance(each, dict) else [each])]
    return {"networks": results, "lines": lines}


def measure(case: Case, device: Device) -> dict[str, Any]:
    """Return the measured and the modelled seconds of one call, and the time of each kernel."""
    modelled = trace(case)
    with running(case, device) as run:
        seconds = device.seconds(run)
        kernels = kernel_table(run) if device.on_gpu else []
    flops = sum(op.flops for op in modelled.ops)
    line = f"{case.title}: {1e3 * seconds:.3f} ms ({flops / seconds / 1e12:.0f} TFLOP/s), modelled "
    line += f"{1e3 * step_seconds(modelled.ops):.3f} ms, {modelled.kernels} kernels"
    shown = [f"  {each['us']:8.0f} us {each['count']:4d} x {each['name'][:70]}" for each in kernels[:_TOP]]
    counts = {"traced": modelled.kernels, "launched": sum(each["count"] for each in kernels)}
    return {"seconds": seconds, "kernels": kernels, "counts": counts, "flops": flops, "lines": [line, *shown]}


def measured_seconds(case: Case, device: Device) -> float:
    """Return the seconds of one call."""
    with running(case, device) as run:
        return device.seconds(run)


@contextmanager
def running(
    case: Case, device: Device, fusing: Callable[[nn.Module], object] | None = None
) -> Iterator[Callable[[], Any]]:
    """Yield one call of the network, with weights that are drawn on the device."""
    module = on_device(build(case) if fusing is None else build(case, fusing), device)
    inputs = {name: _filled(tensor, device) for name, tensor in inputs_of(case).items()}
    with torch.inference_mode():
        if case.component != "unet" or fusing is not None:
            yield lambda: module(**inputs)
            return
        constants = {name: t for name, t in inputs.items() if name not in ("sample", "timestep")}
        values = StepValues(module, inputs["timestep"].expand(2, -1), constants, torch.bfloat16)
        with values.at(0):
            yield lambda: module(**inputs)


def on_device(module: nn.Module, device: Device) -> nn.Module:
    """Give a module of the meta device random weights: small ones, and norms that keep the size of their input."""
    module = module.to_empty(device=device.name)
    generator = torch.Generator(device.name).manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                deep = max(1, tensor[0].numel()) if tensor.ndim > 1 else 0
                mean, deviation = (0.0, deep**-0.5) if deep else (1.0, 0.1)
                tensor.normal_(mean, deviation, generator=generator)
            else:
                tensor.copy_(torch.arange(tensor.numel(), device=device.name).view_as(tensor))
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _filled(tensor: Tensor, device: Device) -> Tensor:
    """Return random numbers of a tensor's shape, type and layout."""
    empty = torch.empty_like(tensor, device=device.name)
    return empty.normal_() if tensor.is_floating_point() else empty.random_(0, 77)


def kernel_table(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the kernels of one call by name with their number and time, from PyTorch's profiler."""
    warm_up(run)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    counts, times = Counter[str](), defaultdict[str, float](float)
    for event in profile.events():
        if str(event.device_type).endswith("CUDA"):
            counts[event.name] += 1
            times[event.name] += event.time_range.end - event.time_range.start
    return [{"name": n, "count": counts[n], "us": us} for n, us in sorted(times.items(), key=lambda item: -item[1])]


@contextmanager
def only_attention(name: str) -> Iterator[None]:
    """Use one implementation of attention where it works; the others elsewhere."""
    chosen: Any = ours.attention if name == attention.OWN else attention.TORCH_KERNELS[name]
    choices = attention.Choices(lambda run: 1.0 if getattr(run, "func", None) is chosen else 2.0)
    with mock.patch.object(attention, "CHOICES", choices):
        yield


def sweeps(device: Device) -> dict[str, Any]:
    """Measure the slowest convolutions, products and attentions of the networks by themselves."""
    names = () if device.tiny else ("sd15", "sdxl", "vae-1024")
    ops = [op for case in ([TINY["unet"]] if device.tiny else [CASES[n] for n in names]) for op in trace(case).ops]
    limits = {CONVOLUTION: 1, PRODUCT: 1, ATTENTION: 1} if device.tiny else {CONVOLUTION: 14, PRODUCT: 12, ATTENTION: 8}
    measures = {CONVOLUTION: _convolutions, PRODUCT: _products, ATTENTION: _attentions}
    rows: list[dict[str, Any]] = []
    for kind, limit in limits.items():
        shapes = Counter(op.shape for op in ops if op.kind == kind)
        each = {op.shape: op for op in ops if op.kind == kind}
        slowest = sorted(shapes, key=lambda shape: -shapes[shape] * seconds_of(each[shape]))[:limit]
        for shape in slowest:
            runs = measures[kind](each[shape], device)
            times = {name: _attempt(partial(device.seconds, run)) for name, run in runs.items()}
            rows.append({"kind": kind, "shape": shape, "count": shapes[shape], "seconds": times})
    lines = [f"{row['kind']} {row['shape']} x{row['count']}: {_words(row['seconds'])}" for row in rows[:10]]
    return {"rows": rows, "lines": lines}


def _convolutions(op: Op, device: Device) -> Mapping[str, Callable[[], Any]]:
    images, channels, size, outputs, high, wide = op.shape
    x = device.normal(images, channels, high, wide).contiguous(memory_format=torch.channels_last)
    w = device.normal(outputs, channels, size, size).contiguous(memory_format=torch.channels_last)
    pad = [size // 2, size // 2]

    def run(search: bool) -> Tensor:
        """cuDNN keeps its choice for the same flags: TF32, which bfloat16 does not use, tells the two runs apart."""
        convolution: Any = torch._convolution
        find = search and warming_up()
        out: Tensor = convolution(x, w, None, [1, 1], pad, [1, 1], False, [0, 0], 1, find, False, True, search)
        return out

    return {"heuristics": partial(run, False), "searched": partial(run, True)}


def _products(op: Op, device: Device) -> Mapping[str, Callable[[], Any]]:
    _, rows, columns, depth = op.shape
    a, w, total = device.normal(rows, depth), device.normal(columns, depth), device.normal(rows, columns)
    bias = device.normal(columns)
    runs: dict[str, Callable[[], Any]] = {
        "product": lambda: a @ w.t(),
        "with bias": lambda: nn.functional.linear(a, w, bias),
        "to a residual": lambda: total.addmm_(a, w.t()),
    }
    if device.on_gpu:
        eight = [t.to(torch.float8_e4m3fn) for t in (a, w)]
        one = torch.ones((), device=device.name)
        runs["fp8"] = lambda: torch._scaled_mm(eight[0], eight[1].t(), one, one, out_dtype=torch.bfloat16)
    return runs


def _attentions(op: Op, device: Device) -> Mapping[str, Callable[[], Any]]:
    images, heads, queries, keys, width = op.shape
    q, k, v = (device.normal(images, n, heads, width).transpose(1, 2) for n in (queries, keys, keys))
    runs: dict[str, Callable[[], Any]] = {
        name: partial(kernel, q, k, v, width**-0.5) for name, kernel in attention.TORCH_KERNELS.items()
    }
    if width <= ours.MAX_HEAD_WIDTH:
        runs["triton"] = partial(ours.attention, q, k, v, scale=width**-0.5)
    return {**runs, "products": partial(attention._products, q, k, v, width**-0.5)}


def _attempt(run: Callable[[], Any]) -> Any:
    """Return a result, or the first line of the error: one that fails must not end the stage."""
    try:
        return run()
    except Exception as failed:  # each library raises its own types
        return f"{type(failed).__name__}: {first_line(failed)[:80]}"


def _words(times: Mapping[str, float | str]) -> str:
    return ", ".join(f"{n} {'-' if isinstance(t, str) else f'{1e6 * t:.1f} us'}" for n, t in times.items())
