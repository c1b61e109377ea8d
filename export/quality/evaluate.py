"""Is the picture right, and how fast is each network? Child-process functions that run a plan on its backend.

Images are held against those of float32 eager with the same prompts and seeds, which `record` made. A time is a
ratio of two runners called in turns in one process, never a figure of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.backends import LoadedComponent, choose, open_component
from calotype.images.png import to_uint8
from calotype.pipeline import Pipeline
from calotype.plan.plan import read_plan

from ..onnx.capture import ImageSet, read_calls
from .metrics import Pixels, figures

ROUNDS = 30  # of both runners; fewer where one call takes long
ROUNDS_S = 20.0


def reference_pixels(decoded: Path) -> Pixels:
    """The pictures of a recording of the decoder, whole.  # uint8 [N, H, W, 3]"""
    return np.concatenate([to_uint8(call.outputs["sample"]) for call in read_calls(decoded)])


def prove(
    *,
    plan: str,
    backend: str,
    pictures: Mapping[str, Any],
    reference: str,
    metrics: Sequence[str],
    clip_model: str | None,
    decoder_alone: bool = False,
) -> dict[str, Any]:
    """Make the pictures with this plan on this backend; how near they are to the reference, and seconds a picture.

    `decoder_alone` decodes the reference's own latents: the rest of the plan is as it was.
    """
    asked = ImageSet(**{**pictures, "prompts": tuple(pictures["prompts"])})
    pipe = Pipeline(read_plan(Path(plan), sealed=False), choose(backend))
    began = time.perf_counter()
    made, notes = _decoded(pipe, Path(reference)) if decoder_alone else _painted(pipe, asked)
    seconds = (time.perf_counter() - began) / len(made)
    wanted = reference_pixels(Path(reference))
    found = figures(made, wanted, asked.prompts, metrics, Path(clip_model) if clip_model else None)
    return {**found, "seconds": seconds, "notes": list(notes)}


def _painted(pipe: Pipeline, asked: ImageSet) -> tuple[Pixels, tuple[str, ...]]:
    made: list[NDArray[np.uint8]] = []
    notes: tuple[str, ...] = ()
    for i in range(len(asked.prompts)):
        result = pipe(**asked.arguments(i))
        made.append(np.stack([np.asarray(image) for image in result.images]))
        notes = result.report.notes
    return np.concatenate(made), notes


def _decoded(pipe: Pipeline, reference: Path) -> tuple[Pixels, tuple[str, ...]]:
    decoder = pipe.component("vae_decoder")
    made = [to_uint8(decoder(**call.inputs)["sample"]) for call in read_calls(reference)]
    return np.concatenate(made), decoder.retried


def race(*, plan: str, rival: str, name: str, backend: str, recording: str) -> dict[str, float]:
    """Seconds a call of one component of two plans, in turns: the medians, and the median of the rounds' ratios.

    `speed` is how many times as fast `plan` is as `rival`.
    """
    one, two = (_opened(Path(folder), name, backend) for folder in (plan, rival))
    inputs = read_calls(Path(recording))[-1].inputs
    taken: list[tuple[float, float]] = []
    for runner in (one, two):
        _seconds(runner, inputs)  # the first call of each makes its buffers
    began = time.perf_counter()
    while len(taken) < 3 or (len(taken) < ROUNDS and time.perf_counter() - began < ROUNDS_S):
        taken.append((_seconds(one, inputs), _seconds(two, inputs)))
    return {
        "seconds": statistics.median(a for a, _ in taken),
        "rival_seconds": statistics.median(b for _, b in taken),
        "speed": statistics.median(b / a for a, b in taken),
    }


def _opened(folder: Path, name: str, backend: str) -> LoadedComponent:
    return open_component(read_plan(folder, sealed=False).components[name], choose(backend))


def _seconds(runner: LoadedComponent, inputs: Mapping[str, NDArray[Any]]) -> float:
    began = time.perf_counter()
    runner(**inputs)
    return time.perf_counter() - began
