"""One contender at one case: its process, what it told when it was opened, and the pictures it was asked for.

A lane that cannot go on is *out*, with a reason; it never raises for what its process does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measure import system_load as watch
from ..measure.correctness import fault
from ..measure.record import Status
from ..suite.contenders import Contender
from ..suite.plans import Built
from .worker import Cannot, Worker, WorkerError

Pixels = NDArray[np.uint8]  # [B, H, W, 3]
_WARM = 2  # pictures after the first, before any is timed


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One call: a batch of prompts with their seeds, and what float32 eager made of them."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    wanted: Pixels
    trained: bool = True  # else weights are random, and pictures of little contrast


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed picture (or batch)."""

    seconds: float
    parts: Mapping[str, Sequence[float]]
    energy_j: float | None = None
    clock_mhz: float | None = None
    disturbed: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadedComponent:
    """What a fresh process told: of the first time it was started, as later ones find warm caches."""

    told: Mapping[str, Any]  # the answer to "load"
    first_s: float


@dataclass(kw_only=True)
class Lane:
    """A contender at work. `need_bytes` is an estimate of its memory until its peak is known."""

    contender: Contender
    python: Path
    file: Path
    job: Mapping[str, Any]
    threads: int
    timeout_s: float
    need_bytes: int
    built: Built | None = None  # the plan, where it is ours to tell of
    opened: LoadedComponent | None = None
    warm_s: float | None = None  # the best of the pictures after the first: what the base is chosen by
    out: tuple[Status, str] | None = None
    waited: Sample | None = None  # a picture whose components were waited for; on a GPU alone
    samples: list[Sample] = field(default_factory=list)
    pictures: dict[int, Pixels] = field(default_factory=dict)  # seed -> [H, W, 3], as first painted
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    last_used: float = 0.0
    _worker: Worker | None = None

    @property
    def alive(self) -> bool:
        """Has it a process?"""
        return self._worker is not None

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return None if self._worker is None else self._worker.pid

    def open(self, shot: Shot) -> None:
        """Start the process, load, and paint a first picture (which compiles what is compiled late) and some more."""
        if self.alive or self.out:
            return
        try:
            self._worker = Worker(self.python, self.file, threads=self.threads)
            told = self._worker.ask({"op": "load", "job": self.job}, self.timeout_s)
            if told["threads"] != self.threads:
                raise WorkerError(f"it uses {told['threads']} threads where everybody has {self.threads}")
        except WorkerError as failed:
            self.leave("cannot" if isinstance(failed, Cannot) else "failed", str(failed))
            return
        first = self.paint(shot)
        if first is not None:
            self.opened = self.opened or LoadedComponent(told=told, first_s=first.seconds)
            if self.job["device"] == "cuda":
                self.waited = self.paint(shot, wait=True)
            warm = [sample.seconds for sample in (self.paint(shot) for _ in range(_WARM)) if sample is not None]
            self.warm_s = min(warm, default=self.warm_s)

    def paint(self, shot: Shot, *, wait: bool = False) -> Sample | None:
        """The picture is judged at once: a lane that paints wrongly is out. None where it is.

        To `wait` for every component on a GPU is what its parts take to be told; it is no time of a picture.
        """
        if self._worker is None or self.out:
            return None
        _chill()
        with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:
            out = Path(scratch) / "pixels.npy"
            request: dict[str, Any] = {"op": "paint", "prompts": shot.prompts, "negative": None, "seeds": shot.seeds}
            request |= {"out": str(out), "wait": wait}
            try:
                told = self._worker.ask(request, self.timeout_s)
                pixels: Pixels = np.load(out)
            except (WorkerError, OSError, ValueError) as failed:
                self.leave("failed", str(failed))
                return None
        self.last_used = time.monotonic()
        self._learn(told)
        self._judge(shot, pixels)
        return Sample(seconds=told["seconds"], parts={n: tuple(s) for n, s in told["parts"].items()})

    def leave(self, status: Status, reason: str) -> None:
        """Out, for good; the first reason counts."""
        self.out = self.out or (status, reason)
        self.close()

    def close(self) -> None:
        """End the process; the lane may be opened again."""
        if self._worker is not None:
            self._learn({})
            self._worker.close()
            self._worker = None

    def _learn(self, told: Mapping[str, Any]) -> None:
        found = None if self.pid is None else watch.peak_bytes(self.pid)
        self.host_peak_bytes = max(filter(None, (self.host_peak_bytes, found)), default=None)
        device = told.get("device_peak_bytes")
        self.device_peak_bytes = max(filter(None, (self.device_peak_bytes, device)), default=None)
        self.need_bytes = self.host_peak_bytes or self.need_bytes

    def _judge(self, shot: Shot, pixels: Pixels) -> None:
        if pixels.shape[:1] != (len(shot.seeds),):
            self.leave("wrong", f"an array {list(pixels.shape)} for {len(shot.seeds)} pictures")
            return
        for seed, got, wanted in zip(shot.seeds, pixels, shot.wanted, strict=True):
            self.pictures.setdefault(seed, got)
            wrong = fault(got, wanted, self.contender.precision, trained=shot.trained)
            if wrong is not None:
                self.pictures[seed] = got  # the one that is wrong is the one to show
                self.leave("wrong", wrong)
                return


def _chill() -> None:
    """Write over twice the processor's last cache: nothing of the last picture is left in it. Not by the worker, whose
    memory is measured.
    """
    np.full(2 * (watch.cache_bytes() or 0) // 8, 1.0)


def make_room(lanes: Sequence[Lane], keep: Sequence[Lane], need_bytes: int, free: Callable[[], int | None]) -> None:
    """End processes that are not of `keep`, the longest idle first, until so much memory is free."""
    idle = sorted((lane for lane in lanes if lane.alive and lane not in keep), key=lambda lane: lane.last_used)
    for lane in idle:
        have = free()
        if have is None or have >= need_bytes:
            return
        lane.close()
