"""`python -m calotype.benchmarks.gpu_close`: one pipeline on a GPU by the GPU's own clock, beside the host's.

How long a captured picture takes, how much of that the GPU works, and so what the host adds between launches; and each
network alone. Needs torch, triton and diffusers, and a GPU for its figures; `--device cpu` goes the same way with the
host's clock in place of events, to see that it runs.
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

Clock = Callable[[Callable[[], Any]], float]  # seconds that the device works on what the function launches


def by_events(run: Callable[[], Any]) -> float:
    """By the GPU's own clock."""
    import torch

    event: Any = torch.cuda.Event  # which torch leaves untyped
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


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
        "as_one_graph": "painted as one graph" in results[-1].report.notes,
        "picture_s": wall,
        "networks_s": networks,
        "notes": list(results[-1].report.notes),
        "besides_networks_s": wall - sum(networks[n] * counts[n] for n in networks),
    }


def host_share(pipe: calotype.Pipeline, *, rounds: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Of a captured picture: the time between its first and last work on the GPU, and how much of that is idle.

    From PyTorch's own profile of the GPU's activities; {} where it shows none.
    """
    import torch

    profiler = torch.profiler
    pipe(**request)
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as looked:
        for _ in range(rounds):
            pipe(**request)
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in looked.events() if str(e.device_type).endswith("CUDA")
    )
    if not spans:
        return {}
    busy, until, gaps = 0.0, spans[0][0], []
    for start, end in spans:
        if start > until:
            gaps.append(start - until)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    whole = until - spans[0][0]
    return {"busy_share": busy / whole, "launches": len(spans), "median_gap_us": statistics.median(gaps or [0.0])}


def _inputs(pipe: calotype.Pipeline, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Random inputs of the request's size, both halves of guidance where there are such."""
    import numpy as np

    component, profile = pipe.plan.components[name], pipe.plan.profile
    halves = 2 if name != "vae_decoder" and request["guidance_scale"] > 1 else 1
    sizes = profile.sizes(
        batch=halves * request["num_images"], height=request["height"], width=request["width"], chunks=1
    )
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for binding in component.inputs:
        shape = binding.shape(sizes)
        ints = binding.dtype.startswith("int")
        found[binding.name] = draw.integers(0, 9, shape) if ints else draw.standard_normal(shape, dtype=np.float32)
    return found


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
    side = said.size or pipe.plan.profile.height.usual
    request = {
        **{"prompt": "a large red circle on a blue background", "seed": 1, "steps": said.steps, "height": side},
        **{"width": side, "guidance_scale": said.guidance, "num_images": said.batch},
    }
    clock = by_events if said.device == "cuda" else by_host
    found = close(pipe, clock=clock, rounds=said.rounds, request=request)
    if said.device == "cuda":
        found |= host_share(pipe, rounds=said.rounds, request=request)
    print(json.dumps({"model": said.model, "backend": said.backend, "size": side, "steps": said.steps, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
