"""Evaluate a plan on its backend: image quality, and the speed of a component. Runs in child processes.

Images are compared with those that `capture` recorded from float32 eager with the same prompts and seeds. Speed is
always a ratio of two runners that are called alternately in one process.
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

ROUNDS = 30  # calls of each runner; fewer if they take longer than ROUNDS_S
ROUNDS_S = 20.0  # seconds


def evaluate_plan(
    *,
    plan: str,
    backend: str,
    images: Mapping[str, Any],
    reference: str,
    metrics: Sequence[str],
    clip_model: str | None,
    decoder_only: bool = False,
) -> dict[str, Any]:
    """Generate the images with the plan on the backend and compare them with the reference.

    Args:
        images: the fields of the image configuration: prompts, steps, size and so on.
        reference: the float32 decoder's recording.
        metrics: names of `bounds.METRICS`.
        decoder_only: decode the reference's own latents, because only the decoder differs from float32.

    Returns:
        The metrics, "seconds" per image, and "notes".
    """
    config = ImageSet.from_json(images)
    pipe = Pipeline(read_plan(Path(plan), sealed=False), choose(backend))
    calls = read_calls(Path(reference))
    batches: list[Pixels] = []
    notes: tuple[str, ...] = ()
    began = time.perf_counter()
    if decoder_only:
        decoder = pipe.component("vae_decoder")
        batches = [_flat(to_uint8(decoder(**call.inputs)["sample"])) for call in calls]
        notes = decoder.retried
    else:
        for i in range(len(config.prompts)):
            result = pipe(**config.arguments(i))
            batches.append(np.stack([np.asarray(image) for image in result.images]))
            notes = result.report.notes
    pixels = np.concatenate(batches)
    seconds = (time.perf_counter() - began) / len(pixels)
    expected = np.concatenate([_flat(to_uint8(call.outputs["sample"])) for call in calls])
    prompts = [prompt for prompt in config.prompts for _ in range(config.frames or 1)]
    values = figures(pixels, expected, prompts, metrics, Path(clip_model) if clip_model else None)
    return {**values, "seconds": seconds, "notes": list(notes)}


def _flat(pixels: Pixels) -> Pixels:
    """Return images, and the frames of clips, along one axis.  # [B, H, W, 3] or [B, F, H, W, 3] -> [N, H, W, 3]"""
    return pixels.reshape(-1, *pixels.shape[-3:])


def compare_speed(*, plan: str, baseline: str, name: str, backend: str, recording: str) -> dict[str, float]:
    """Time one component of two plans with alternating calls.

    Returns:
        "seconds" and "baseline_seconds": the median time of a call; "speed": the median ratio, above 1 if `plan` is
        faster than `baseline`.
    """
    one, two = (
        open_component(read_plan(Path(folder), sealed=False).components[name], choose(backend))
        for folder in (plan, baseline)
    )
    inputs = read_calls(Path(recording))[-1].inputs
    times: list[tuple[float, float]] = []
    for runner in (one, two):
        _seconds(runner, inputs)  # the first call of each allocates its buffers
    began = time.perf_counter()
    while len(times) < 3 or (len(times) < ROUNDS and time.perf_counter() - began < ROUNDS_S):
        times.append((_seconds(one, inputs), _seconds(two, inputs)))
    return {
        "seconds": statistics.median(a for a, _ in times),
        "baseline_seconds": statistics.median(b for _, b in times),
        "speed": statistics.median(b / a for a, b in times),
    }


def _seconds(runner: LoadedComponent, inputs: Mapping[str, NDArray[Any]]) -> float:
    began = time.perf_counter()
    runner(**inputs)
    return time.perf_counter() - began
