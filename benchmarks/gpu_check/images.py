"""Stages about complete images: whether they are right, from threads as well; how long they take; and a rival."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import calotype
from calotype.backends import choose
from calotype.backends.components import Components
from calotype.errors import first_line
from calotype.export import prepare_lazily
from calotype.export.quality.metrics import psnr

from ..op_trace.networks import CASES, TINY, Case
from .device import Device
from .measured import running

PROMPT = "a large red circle on a blue background"
_LEAST_DB = {"fp32": 55.0, "fp16": 30.0, "bf16": 20.0}  # of an image against the eager one


def complete_images(device: Device) -> dict[str, Any]:
    """Check images of the demonstration model as one graph: in each precision, and from several threads."""
    request = {
        "steps": 1 if device.tiny else 4,
        "width": 32 if device.tiny else 64,
        "height": 32 if device.tiny else 64,
    }
    precisions = ("fp32",) if device.tiny else tuple(_LEAST_DB)
    checks: dict[str, Callable[[], str]] = {
        f"image in {precision}": partial(_is_near, precision, request) for precision in precisions
    }
    checks["pipe during pipe.stream"] = partial(_during_a_stream, request)
    if not device.tiny:
        checks["two pipelines capture at once"] = partial(_two_capture, request)
        checks["40 captures"] = partial(_many_captures, request)
        checks["sizes come and go"] = partial(_sizes, request)
    results = {}
    with device.stand_ins():
        for name, check in checks.items():
            try:
                results[name] = check()
            except Exception as failed:  # of any kind: the others are checked anyway
                results[name] = f"FAILED {type(failed).__name__}: {first_line(failed)[:100]}"
    faulty = any(result.startswith("FAILED") for result in results.values())
    status = {"status": "failed: checks"} if faulty else {}
    return {"checks": results, **status, "lines": [f"{name}: {result}" for name, result in results.items()]}


def _request(device: Device, *, steps: int) -> dict[str, Any]:
    side = 32 if device.tiny else 64
    return {"steps": 1 if device.tiny else steps, "width": side, "height": side}


def pipeline_in(precision: str) -> calotype.Pipeline:
    """Return the demonstration model on the cuda backend in a precision."""
    choice = choose("cuda")
    plan = prepare_lazily("demo", forms=choice.forms).plan
    components = {
        name: replace(each, artifacts=tuple(replace(a, precision=precision) for a in each.artifacts))
        for name, each in plan.components.items()
    }
    plan = replace(plan, components=components)
    return calotype.Pipeline(plan, Components(plan, choice))


def _is_near(precision: str, request: dict[str, Any]) -> str:
    expected = calotype.load("demo", backend="eager")(PROMPT, seed=1, **request)
    began = time.perf_counter()
    got = pipeline_in(precision)(PROMPT, seed=1, **request)
    first = time.perf_counter() - began
    near = _psnr(got, expected)
    captured = any("one graph" in note for note in got.report.notes)
    verdict = "ok" if captured and near >= _LEAST_DB[precision] else "FAILED"
    return f"{verdict}, {near:.1f} dB to eager, {'one graph' if captured else 'step by step'}, first call {first:.1f} s"


def _psnr(got: Any, expected: Any) -> float:
    a, b = (np.asarray(each.images[0]) for each in (got, expected))
    return min(99.0, float(psnr(a, b)))


def _during_a_stream(request: dict[str, Any]) -> str:
    """The first call captures while another thread runs step by step; both must have the images of a call alone."""
    pipe = pipeline_in("fp32")
    alone = {seed: calotype.load("demo", backend="eager")(PROMPT, seed=seed, **request) for seed in (1, 2)}
    got: dict[int, Any] = {}

    def stream() -> None:
        *_, last = pipe.stream(PROMPT, seed=2, **request)
        got[2] = last

    thread = threading.Thread(target=stream)
    thread.start()
    got[1] = pipe(PROMPT, seed=1, **request)
    thread.join()
    near = [_psnr(got[seed], alone[seed]) for seed in got if hasattr(got[seed], "images")]
    return f"{'ok' if near and min(near) > 50 and 2 in got else 'FAILED'}, {min(near):.1f} dB to images alone"


def _two_capture(request: dict[str, Any]) -> str:
    pipes = [pipeline_in("fp32") for _ in range(2)]
    got: list[Any] = [None, None]

    def work(i: int) -> None:
        got[i] = pipes[i](PROMPT, seed=i, **request)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notes = [note for each in got for note in each.report.notes if "step by step" in note]
    return "FAILED, " + notes[0] if notes else "ok"


def _many_captures(request: dict[str, Any]) -> str:
    """More captures than torch's pool has streams."""
    pipe = pipeline_in("fp32")
    for steps in range(1, 41):
        report = pipe(PROMPT, seed=1, **{**request, "steps": steps}).report
        if not any("one graph" in note for note in report.notes):
            return f"FAILED at {steps} steps: {report.notes}"
    return f"ok, {torch.cuda.memory_reserved() / 1e9:.2f} GB reserved"


def _sizes(request: dict[str, Any]) -> str:
    pipe, eager = pipeline_in("fp32"), calotype.load("demo", backend="eager")
    worst = 99.0
    for width, height in ((64, 96), (96, 64), (64, 96)):
        sides = {**request, "width": width, "height": height}
        worst = min(worst, _psnr(pipe(PROMPT, seed=1, **sides), eager(PROMPT, seed=1, **sides)))
    return f"{'ok' if worst > 50 else 'FAILED'}, {worst:.1f} dB at least"


def image_times(device: Device) -> dict[str, Any]:
    """Measure the demonstration model's image, and what the networks of a full-size image take in all."""
    request = {
        "steps": 1 if device.tiny else 20,
        "width": 32 if device.tiny else 64,
        "height": 32 if device.tiny else 64,
    }
    with device.stand_ins():
        pipe = pipeline_in("fp32" if device.tiny else "fp16")
        began = time.perf_counter()
        pipe(PROMPT, seed=1, **request)
        first = time.perf_counter() - began
        times = []
        for seed in range(1 if device.tiny else 5):
            began = time.perf_counter()
            pipe(PROMPT, seed=seed, **request)
            times.append(time.perf_counter() - began)
    lines = [f"demo, {request['steps']} steps: first call {first:.2f} s, then {1e3 * min(times):.1f} ms"]
    plans = (("tiny", 1, "unet", "vae"),) if device.tiny else (
        ("SD 1.5", 20, "sd15", "vae-512"),
        ("SDXL", 30, "sdxl", "vae-1024"),
        ("SD-Turbo with TAESD", 1, "sd-turbo", "taesd"),
    )  # fmt: skip
    images = {}
    for title, steps, unet, decoder in plans:
        cases = TINY if device.tiny else CASES
        seconds = [_seconds(cases[name], device) for name in (unet, decoder)]
        images[title] = {"step_s": seconds[0], "decoder_s": seconds[1], "image_s": steps * seconds[0] + seconds[1]}
        in_all = images[title]["image_s"]
        lines.append(f"{title}: {steps} steps and the decoder {1e3 * in_all:.1f} ms, {1 / seconds[0]:.1f} steps/s")
    held = torch.cuda.max_memory_allocated() if device.on_gpu else 0
    return {"demo": {"first_s": first, "next_s": times}, "images": images, "peak_bytes": held, "lines": lines}


def _seconds(case: Case, device: Device) -> float:
    with running(case, device) as run:
        return device.seconds(run)


def rival(device: Device) -> dict[str, Any]:
    """Measure diffusers' own U-Net of Stable Diffusion 1.5: eager, and by torch.compile with a search."""
    case = TINY["unet"] if device.tiny else CASES["sd15"]
    results: dict[str, float] = {}
    with running(case, device, _as_it_is) as run:
        with suppress(AttributeError):
            torch.backends.cudnn.benchmark = device.on_gpu
        results["diffusers, eager, as a graph"] = device.seconds(run)
    modes = ("reduce-overhead", "max-autotune-no-cudagraphs") if device.on_gpu else ("eager",)
    for mode in modes:
        with running(case, device, _as_it_is) as run:
            options: dict[str, Any] = {"mode": mode} if device.on_gpu else {"backend": "eager"}
            compiled = torch.compile(run, **options)
            began = time.perf_counter()
            compiled()
            results[f"torch.compile, {mode}, first call"] = time.perf_counter() - began
            results[f"torch.compile, {mode}"] = _by_events(compiled) if device.on_gpu else device.seconds(compiled)
            print(results, flush=True)
    return {"contenders": results, "lines": [f"{name}: {1e3 * seconds:.2f} ms" for name, seconds in results.items()]}


def _as_it_is(module: nn.Module) -> None:
    """Leave the modules, in the layout that is fastest for them."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _by_events(run: Callable[[], Any]) -> float:
    """Return the seconds of a run that captures graphs of its own."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 20
