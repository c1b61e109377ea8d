"""The engine loop against a lock around a pipeline, and a job alone against a call, in one interleaved run.

    python -m calotype.benchmarks.serving.loop [--model demo] [--backend openvino] [--clients 8] [--rounds 5]

Prints a table, and a last line of JSON: the ratio of images in a second and of latencies in each round, as medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Mapping
from typing import Any

import calotype
from calotype.pipeline import Pipeline
from calotype.serve import Engine, EngineSettings, JobRequest

from .traffic import STEPS, Send, Traffic, requests, run


def submitting(engine: Engine) -> Send:
    """Return a function that runs a request as a job."""

    def send(arguments: Mapping[str, Any]) -> Any:
        named = dict(arguments)
        return engine.submit(JobRequest(prompt=named.pop("prompt"), arguments=named)).result()

    return send


def locking(pipe: Pipeline) -> Send:
    """Return a function that runs a request as a call, one at a time."""
    lock = threading.Lock()

    def send(arguments: Mapping[str, Any]) -> Any:
        with lock:
            return pipe(**arguments)

    return send


def compare(pipe: Pipeline, engine: Engine, *, clients: int, rounds: int, each: int, pause_s: float) -> dict[str, Any]:
    """Run the same traffic on both in turns, and single requests on both in turns."""
    sends = {"lock": locking(pipe), "engine": submitting(engine)}
    work = [requests(each * clients, seed) for seed in range(rounds + 1)]
    for send in sends.values():  # schedulers are compiled, and networks for their sizes
        run(send, work[0], clients=clients, pause_s=0, seed=0)
    results: dict[str, list[Traffic]] = {name: [] for name in sends}
    for seed in range(1, rounds + 1):
        for name, send in sorted(sends.items(), reverse=seed % 2 == 0):
            results[name].append(run(send, work[seed], clients=clients, pause_s=pause_s, seed=seed))
    pairs = list(zip(results["engine"], results["lock"], strict=True))
    return {
        "engine": [traffic.to_json() for traffic in results["engine"]],
        "lock": [traffic.to_json() for traffic in results["lock"]],
        "images_per_s_ratio": _median([ours.images_per_s / theirs.images_per_s for ours, theirs in pairs]),
        "mean_latency_ratio": _median(
            [statistics.mean(ours.latencies_s) / statistics.mean(theirs.latencies_s) for ours, theirs in pairs]
        ),
        "p95_latency_ratio": _median([ours.percentile_s(0.95) / theirs.percentile_s(0.95) for ours, theirs in pairs]),
        "alone_ratio": alone(sends, rounds * 4),
    }


def alone(sends: Mapping[str, Send], count: int) -> float:
    """Return the time of a job relative to a call: the median of the ratios of pairs."""
    ratios = []
    for seed in range(count):
        seconds = {}
        for name, send in sorted(sends.items(), reverse=seed % 2 == 0):
            began = time.perf_counter()
            send({"prompt": "a red circle on a blue background", "steps": 20, "seed": seed, "scheduler": "euler"})
            seconds[name] = time.perf_counter() - began
        ratios.append(seconds["engine"] / seconds["lock"])
    return _median(ratios)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=4, help="Requests of a client in a round.")
    parser.add_argument("--pause", type=float, default=0.1, help="Mean seconds between an answer and the next request.")
    parser.add_argument("--slots", type=int, help="Images that run together.  [default: the backend's]")
    chosen = parser.parse_args()
    pipe = calotype.load(chosen.model, backend=chosen.backend)
    engine = Engine(pipe, EngineSettings(max_slots=chosen.slots))
    figures = compare(
        pipe, engine, clients=chosen.clients, rounds=chosen.rounds, each=chosen.each, pause_s=chosen.pause
    )
    engine.close()
    print(f"{'':8}{'images/s':>10}{'mean, s':>10}{'p50, s':>10}{'p95, s':>10}")
    for name in ("lock", "engine"):
        for row in figures[name]:
            print(f"{name:8}{row['images_per_s']:10.3f}{row['mean_s']:10.3f}{row['p50_s']:10.3f}{row['p95_s']:10.3f}")
    settings = {"model": chosen.model, "backend": chosen.backend, "slots": chosen.slots, "steps": STEPS}
    print(json.dumps({"benchmark": "serving loop", **settings, **figures}))


if __name__ == "__main__":
    main()
