"""`python -m calotype.benchmarks.scripts.gpu_close`: one pipeline on a GPU by the GPU's own clock, beside the host's.

How long a picture takes on the host, how long the GPU works on each network alone, and how much of one picture's time
on the GPU is work. Needs torch, triton and diffusers, and a GPU for its figures; `--device cpu` goes the same way with
the host's clock in place of the GPU's, to see that it runs.
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

Clock = Callable[[Callable[[], Any]], float]  # seconds that the device works on what the function launches
Span = tuple[float, float]  # when one piece of work on the GPU began and ended, in microseconds


def spans_of(run: Callable[[], Any]) -> list[Span]:
    """What the GPU does for a function, in order, by PyTorch's profile of its activities; [] where that shows none."""
    import torch

    profiler = torch.profiler
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as looked:
        run()
    found = (e for e in looked.events() if str(e.device_type).endswith("CUDA"))
    return sorted((e.time_range.start, e.time_range.end) for e in found)


def busy_and_gaps(spans: Sequence[Span]) -> tuple[float, list[float]]:
    """How long at least one of the spans lasts, and the pauses between, in microseconds. They are in order."""
    busy, until, gaps = 0.0, spans[0][0], []
    for start, end in spans:
        if start > until:
            gaps.append(start - until)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy, gaps


def by_gpu(run: Callable[[], Any]) -> float:
    """By what the GPU did: the host's part, with copies that it waits for, is not in it."""
    spans = spans_of(run)
    return busy_and_gaps(spans)[0] / 1e6 if spans else float("nan")


def by_host(run: Callable[[], Any]) -> float:
    """By the host's, where the host is the device."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def close(pipe: calotype.Pipeline, *, clock: Clock, rounds: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a whole picture on the host, of its networks, and whether it was one graph. Medians of the rounds."""
    results = [pipe(**request)]  # captures, and is not timed
    walls: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        results.append(pipe(**request))
        walls.append(time.perf_counter() - began)
    taken: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for name in (n for n in pipe.plan.components if n in ("text_encoder", "text_encoder_2", "unet", "vae_decoder")):
        component = pipe.component(name)
        inputs = _inputs(pipe, name, request)
        component(**inputs)
        taken[name] = [clock(lambda c=component, i=inputs: c(**i)) for _ in range(rounds)]  # type: ignore[misc]
        counts[name] = results[-1].report.network_calls if name == "unet" else 1
    networks = {name: statistics.median(seconds) for name, seconds in taken.items()}
    wall = statistics.median(walls)
    return {
        "as_one_graph": "generated as one graph" in results[-1].report.notes,
        "picture_s": wall,
        "networks_s": networks,
        "notes": list(results[-1].report.notes),
        "besides_networks_s": wall - sum(networks[n] * counts[n] for n in networks),
    }


def host_share(spans: Sequence[Span]) -> dict[str, Any]:
    """Of one picture's work on the GPU: how much of the time from its beginning to its end is work."""
    if not spans:
        return {}
    busy, gaps = busy_and_gaps(spans)
    whole = max(end for _, end in spans) - spans[0][0]
    return {"busy_share": busy / whole, "activities": len(spans), "median_gap_us": statistics.median(gaps or [0.0])}


def _inputs(pipe: calotype.Pipeline, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Random inputs of the request's size, both halves of guidance where there are such."""
    component, profile = pipe.plan.components[name], pipe.plan.profile
    halves = 2 if name != "vae_decoder" and request["guidance_scale"] > 1 else 1
    sizes = profile.sizes(
        batch=halves * request["num_images"], height=request["height"], width=request["width"], chunks=1
    )
    return random_inputs(component.inputs, {b.name: b.shape(sizes) for b in component.inputs}, ids=9)


def main(arguments: Sequence[str]) -> int:
    """The command: one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, a folder or a plan")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    for name, usual in (("steps", 20), ("size", 0), ("batch", 1), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--guidance", type=float, default=5.0)
    said = parser.parse_args(arguments)
    if (said.backend in ON_GPU) != (said.device == "cuda"):
        raise InputError(f"the backend {said.backend} does not run on {said.device}.")
    pipe = calotype.load(said.model, backend=said.backend)
    side = said.size or pipe.plan.profile.height.opt
    request = {
        **{"prompt": "a large red circle on a blue background", "seed": 1, "steps": said.steps, "height": side},
        **{"width": side, "guidance_scale": said.guidance, "num_images": said.batch},
    }
    clock = by_gpu if said.device == "cuda" else by_host
    found = close(pipe, clock=clock, rounds=said.rounds, request=request)
    if said.device == "cuda":
        found |= host_share(spans_of(lambda: pipe(**request)))
    print(json.dumps({"model": said.model, "backend": said.backend, "size": side, "steps": said.steps, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
