"""Times of one pipeline on a GPU by its own clock and by the host's: `python -m calotype.benchmarks.scripts.gpu_close`.

Measures how long an image takes on the host, how long the GPU works on each network, and which share of an image's time
on the GPU is work. Needs torch, triton, diffusers and a GPU; `--device cpu` runs the same code with the host's clock,
to test it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import calotype
from calotype.backends import ON_GPU
from calotype.errors import InputError
from calotype.plan.bindings import random_inputs

Clock = Callable[[Callable[[], Any]], float]  # seconds of the device's work for a function
Span = tuple[float, float]  # start and end of one GPU activity, in microseconds


def spans_of(run: Callable[[], Any]) -> list[Span]:
    """Return the GPU's activities during a function, in order, from PyTorch's profiler; [] if it shows none."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    events = (e for e in profile.events() if str(e.device_type).endswith("CUDA"))
    return sorted((e.time_range.start, e.time_range.end) for e in events)


def busy_and_gaps(spans: Sequence[Span]) -> tuple[float, list[float]]:
    """Return how long at least one span lasts, and the gaps between them, in microseconds. Spans are in order."""
    busy, until, gaps = 0.0, spans[0][0], []
    for start, end in spans:
        if start > until:
            gaps.append(start - until)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy, gaps


def by_gpu(run: Callable[[], Any]) -> float:
    """Return the seconds in which the GPU was busy, without the host's part."""
    spans = spans_of(run)
    return busy_and_gaps(spans)[0] / 1e6 if spans else float("nan")


def by_host(run: Callable[[], Any]) -> float:
    """Return the seconds on the host, if the host is the device."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def close(pipe: calotype.Pipeline, *, clock: Clock, rounds: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds of an image and of its networks, and whether it was one graph. Medians of the rounds."""
    report = pipe(**request).report  # captures the graph; not timed
    wall = statistics.median(by_host(lambda: pipe(**request)) for _ in range(rounds))
    networks = {}
    for name in (n for n in pipe.plan.components if n in ("text_encoder", "text_encoder_2", "unet", "vae_decoder")):
        component, inputs = pipe.component(name), _inputs(pipe, name, request)
        component(**inputs)
        seconds = [clock(lambda c=component, i=inputs: c(**i)) for _ in range(rounds)]  # type: ignore[misc]
        networks[name] = statistics.median(seconds)
    calls = {"unet": report.network_calls}
    return {
        "as_one_graph": any(note.endswith("as one graph") for note in report.notes),
        "image_s": wall,
        "networks_s": networks,
        "notes": list(report.notes),
        "besides_networks_s": wall - sum(seconds * calls.get(name, 1) for name, seconds in networks.items()),
    }


def host_share(spans: Sequence[Span]) -> dict[str, Any]:
    """Return which share of an image's time on the GPU, from its first to its last activity, is work."""
    if not spans:
        return {}
    busy, gaps = busy_and_gaps(spans)
    total = max(end for _, end in spans) - spans[0][0]
    return {"busy_share": busy / total, "activities": len(spans), "median_gap_us": statistics.median(gaps or [0.0])}


def _inputs(pipe: calotype.Pipeline, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return random inputs of the request's size, with both halves of the guidance if it is on."""
    component, profile = pipe.plan.components[name], pipe.plan.profile
    batch = request["num_images"] * (2 if name != "vae_decoder" and request["guidance_scale"] > 1 else 1)
    sizes = profile.sizes(batch=batch, height=request["height"], width=request["width"], chunks=1)
    return random_inputs(component.inputs, {b.name: b.shape(sizes) for b in component.inputs}, ids=9)


def main(arguments: Sequence[str]) -> int:
    """Run the command: print one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, a folder or a plan")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--precision", default="auto", help="as for load")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    for name, default in (("steps", 20), ("size", 0), ("batch", 1), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=5.0)
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if (options.backend in ON_GPU) != on_gpu:
        message = f"the backend {options.backend} does not run on {options.device}."
        raise InputError(message, argument="backend", got=options.backend)
    pipe = calotype.load(options.model, backend=options.backend, precision=options.precision)
    side = options.size or pipe.plan.profile.height.opt
    request = {"prompt": "a large red circle on a blue background", "seed": 1, "steps": options.steps}
    request |= {"height": side, "width": side, "guidance_scale": options.guidance, "num_images": options.batch}
    results = {"model": options.model, "backend": options.backend, "size": side, "steps": options.steps}
    results |= close(pipe, clock=by_gpu if on_gpu else by_host, rounds=options.rounds, request=request)
    results |= host_share(spans_of(lambda: pipe(**request))) if on_gpu else {}
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
