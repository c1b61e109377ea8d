"""Measure the axes, and fit how seconds and memory grow next to the operations of the work.

Each point is a process of its own, so that its peak memory is its own. The points of an axis run twice, forwards and
backwards: what disturbs the machine for a while does not bend the curve. The exponent is the slope of a line through
the logarithms. The expected one is the slope of the operations, counted by `suite.flops` (`count`).
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import BackendError, InputError
from calotype.export.sources.configs import MODELS
from calotype.export.sources.source import find, read_source
from calotype.plan.family import family_of

from ..measure.system_load import commit, machine, versions
from ..suite.flops import component_flops
from ..suite.models import controlnet_folder, model_folder
from .axes import AXES, Axis, Work, axis

TOLERANCE = 0.15  # of an exponent: what grows faster than its work by more than this is marked
RESULTS = "scale.json"
_BASES: Mapping[str, Work] = {"demo": Work(size=256, steps=4), "sd15": Work(size=256, steps=1)}

Run = Callable[[Mapping[str, Any]], dict[str, Any]]


def measure(
    output: Path,
    *,
    models: Sequence[str] = ("demo", "sd15"),
    axes: Sequence[str] = AXES,
    backend: str = "openvino",
    rounds: int = 2,
    row_filter: str = "",
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure the axes of these models, write `scale.json` into `output`, and return its content.

    `row_filter` keeps the rows whose "MODEL AXIS" contains it. Raises `InputError` if there is none.
    """
    chosen = {model: [name for name in axes if row_filter in f"{model} {name}"] for model in models}
    if not any(chosen.values()):
        everything = ", ".join(f"{model} {name}" for model in models for name in axes)
        message = f"--filter {row_filter!r} matches none of the rows: {everything}."
        raise InputError(message, argument="filter", got=row_filter)
    about = {"machine": machine(), "versions": versions(), "commit": commit(), "backend": backend}
    about["date"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    rows: list[dict[str, Any]] = []
    for model, names in chosen.items():
        if not names:
            continue
        folder, controlnet = _folders(model, "1 + ControlNets" in names)
        for name in names:
            along = axis(name, _BASES.get(model, _BASES["sd15"]))
            job = {"model": str(folder), "controlnet": str(controlnet), "backend": backend, "rounds": rounds}
            row = {"model": model, **measure_axis(along, job, partial(operations, folder, controlnet=controlnet))}
            rows.append(row)
            show(line(row))
            (output / RESULTS).write_text(json.dumps({**about, "rows": rows}, indent=1))
    return {**about, "rows": rows}


def measure_axis(
    along: Axis, job: Mapping[str, Any], count: Callable[[Work], int], run: Run | None = None
) -> dict[str, Any]:
    """Return the medians of an axis' points, and their exponents."""
    run = run or run_point
    seconds: dict[int, list[float]] = {i: [] for i in range(len(along.works))}
    peaks = dict.fromkeys(seconds, 0)
    for i in (*seconds, *reversed(seconds)):
        point = run({**job, "work": along.works[i].to_json()})
        seconds[i] += point["seconds"]
        peaks[i] = max(peaks[i], point["peak_bytes"] or 0)
    medians = [statistics.median(each) for each in seconds.values()]
    flops = [count(work) for work in along.works]
    measured, expected = exponent(along.amounts, medians), exponent(along.amounts, flops)
    return {
        "axis": along.name,
        "amounts": list(along.amounts),
        "works": [work.to_json() for work in along.works],
        "seconds": medians,
        "peak_bytes": list(peaks.values()),
        "flops": flops,
        "exponent": measured,
        "expected": expected,
        "memory_exponent": exponent(along.amounts, list(peaks.values())),
        "faster_than_its_work": measured > expected + TOLERANCE,
    }


def exponent(amounts: Iterable[float], values: Sequence[float]) -> float:
    """Return the slope of the values against the amounts, both as logarithms; 0 if a value is 0."""
    if min(values) <= 0:
        return 0.0
    return float(np.polyfit(np.log(list(amounts)), np.log(values), 1)[0])


def operations(folder: Path, work: Work, controlnet: Path | None = None) -> int:
    """Return the operations of a work with guidance: text, all steps with their ControlNets, and decoding."""
    nets = (controlnet,) * work.controlnets if controlnet else ()
    source = read_source(folder, nets)
    names = list(family_of(source.configs).components)
    size = {"height": work.size, "width": work.size, "chunks": work.chunks}
    guided = [n for n in names if n.startswith(("unet", "controlnet"))]
    step = sum(component_flops(source, name, batch=2 * work.batch, **size) for name in guided)
    # The chunks of a prompt are rows of the text encoder's batch.
    text = component_flops(source, "text_encoder", batch=2 * work.chunks, height=work.size, width=work.size)
    decoding = component_flops(source, "vae_decoder", batch=work.batch, height=work.size, width=work.size)
    return text + work.steps * step + decoding


def run_point(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a point in a process. Raises `BackendError` if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "calotype.benchmarks.scale.point"],
            input=json.dumps({**job, "scratch": scratch}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise BackendError(f"the point {job['work']} failed: {reason}", backend=job["backend"])
    point: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return point


def line(row: Mapping[str, Any]) -> str:
    """Return a row of the table of `table`."""
    first, last = row["seconds"][0], row["seconds"][-1]
    mark = " **grows faster than its work**" if row["faster_than_its_work"] else ""
    amounts = f"{row['amounts'][0]} to {row['amounts'][-1]}"
    memory = " to ".join(f"{row['peak_bytes'][i] / 2**30:.2f}" for i in (0, -1))
    cells = (row["model"], row["axis"], amounts, f"{first:.3g} to {last:.3g}", f"{row['exponent']:.2f}{mark}")
    return f"| {' | '.join(cells)} | {row['expected']:.2f} | {memory} | {row['memory_exponent']:.2f} |"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    heads = ("model", "axis", "amount", "seconds", "exponent", "expected", "memory, GiB", "its exponent")
    return "\n".join([f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *map(line, rows)])


def _folders(model: str, controlled: bool) -> tuple[Path, Path]:
    if model in MODELS:
        return model_folder(model), controlnet_folder(model) if controlled else Path()
    return find(model), find(f"{model}-canny") if controlled else Path()
