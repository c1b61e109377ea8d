"""One contender at one case: its process, its answer to "load", and its images.

A process that cannot go on is *excluded*, with a reason. A failure of the process never raises.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import system_load
from ..measure.correctness import Pixels, find_fault
from ..measure.record import Status
from ..suite.contenders import Contender
from ..suite.plans import BuiltPlan
from .worker import UnsupportedCase, Worker, WorkerError

_WARM_UPS = 2  # images after the first, before the timed ones


@dataclass(frozen=True, kw_only=True)
class BenchmarkCall:
    """One call: a batch of prompts with their seeds, and the images of float32 eager."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    expected: Pixels
    trained: bool = True  # False: random weights, whose images have little contrast


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed image (or batch)."""

    seconds: float
    parts: Mapping[str, Sequence[float]]
    energy_j: float | None = None
    clock_mhz: float | None = None
    disturbed: bool = False


@dataclass(kw_only=True)
class ContenderProcess:
    """A contender and its process. `need_bytes` is an estimate of its memory until the peak is known."""

    contender: Contender
    python: Path
    file: Path
    job: Mapping[str, Any]
    threads: int
    timeout_s: float
    need_bytes: int
    built: BuiltPlan | None = None  # our plan, whose build time we report
    loaded: Mapping[str, Any] = field(default_factory=dict)  # the answer to "load"; later starts find warm caches
    first_s: float | None = None  # the first image of the first process
    warm_s: float | None = None  # the fastest image after the first; it decides which contender is the base
    exclusion: tuple[Status, str] | None = None  # status and reason
    synchronized: Sample | None = None  # an image timed by its components; only on a GPU
    samples: list[Sample] = field(default_factory=list)
    images: dict[int, Pixels] = field(default_factory=dict)  # seed -> [H, W, 3], the first of each seed
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    last_used: float = 0.0
    _worker: Worker | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._worker is not None

    @property
    def pid(self) -> int | None:
        """The id of the process."""
        return None if self._worker is None else self._worker.pid

    def open(self, call: BenchmarkCall) -> None:
        """Start the process, load, and generate images.

        The first image compiles what is compiled late, the others warm up.
        """
        if self.alive or self.exclusion:
            return
        try:
            self._worker = Worker(self.python, self.file, threads=self.threads)
            answer = self._worker.ask({"op": "load", "job": self.job}, self.timeout_s)
            if answer["threads"] != self.threads:
                raise WorkerError(f"it uses {answer['threads']} threads, expected {self.threads}")
        except WorkerError as failed:
            self.exclude("cannot" if isinstance(failed, UnsupportedCase) else "failed", str(failed))
            return
        first = self.generate(call)
        if first is None:
            return
        if self.first_s is None:
            self.loaded, self.first_s = answer, first.seconds
        if self.job["device"] == "cuda":
            self.synchronized = self.generate(call, wait=True)
        warm = [sample.seconds for sample in (self.generate(call) for _ in range(_WARM_UPS)) if sample is not None]
        self.warm_s = min(warm, default=self.warm_s)

    def generate(self, call: BenchmarkCall, *, wait: bool = False) -> Sample | None:
        """Generate an image and check it. Return None if the contender is, or gets, excluded.

        `wait` makes a GPU synchronize after every component, to time the parts. The time of the image then does not
        count.
        """
        if self._worker is None or self.exclusion:
            return None
        # Nothing of the last image may be left in the cache. The worker does not do this: its memory is measured.
        np.full(2 * (system_load.cache_bytes() or 0) // 8, 1.0)
        with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
            out = Path(scratch) / "pixels.npy"
            request = {"op": "generate", "prompts": call.prompts, "negative": None, "seeds": call.seeds, "wait": wait}
            try:
                answer = self._worker.ask({**request, "out": str(out)}, self.timeout_s)
                pixels: Pixels = np.load(out)
            except (WorkerError, OSError, ValueError) as failed:
                self.exclude("failed", str(failed))
                return None
        self.last_used = time.monotonic()
        self._update_peaks(answer.get("device_peak_bytes"))
        self._check_images(call, pixels)
        parts: dict[str, list[float]] = {}
        for name, seconds in answer["parts"].items():  # not every contender separates several ControlNets
            parts.setdefault("controlnet" if name.startswith("controlnet") else name, []).extend(seconds)
        return Sample(seconds=answer["seconds"], parts=parts)

    def exclude(self, status: Status, reason: str) -> None:
        """Exclude the contender for good. The first reason counts."""
        self.exclusion = self.exclusion or (status, reason)
        self.close()

    def close(self) -> None:
        """End the process. It may be opened again."""
        if self._worker is not None:
            self._update_peaks(None)
            self._worker.close()
            self._worker = None

    def _update_peaks(self, device: int | None) -> None:
        host = None if self.pid is None else system_load.peak_bytes(self.pid)
        self.host_peak_bytes = max(filter(None, (self.host_peak_bytes, host)), default=None)
        self.device_peak_bytes = max(filter(None, (self.device_peak_bytes, device)), default=None)
        self.need_bytes = self.host_peak_bytes or self.need_bytes

    def _check_images(self, call: BenchmarkCall, pixels: Pixels) -> None:
        if len(pixels) != len(call.seeds):
            self.exclude("wrong", f"it returned an array {list(pixels.shape)} for {len(call.seeds)} images")
            return
        for seed, got, expected in zip(call.seeds, pixels, call.expected, strict=True):
            self.images.setdefault(seed, got)
            wrong = find_fault(got, expected, self.contender.precision, trained=call.trained)
            if wrong is not None:
                self.images[seed] = got  # the wrong image is the one to show
                self.exclude("wrong", wrong)
                return


def make_room(
    processes: Sequence[ContenderProcess],
    keep: Sequence[ContenderProcess],
    need_bytes: int,
    free: Callable[[], int | None],
) -> None:
    """End processes that are not in `keep`, the longest idle first, until `need_bytes` of memory are free."""
    for process in sorted(processes, key=lambda process: process.last_used):
        if process.alive and process not in keep:
            have = free()
            if have is None or have >= need_bytes:
                return
            process.close()
