"""A run of the suite: case by case, who can is opened, judged, raced, and written down.

The order of the work, and nothing else: lanes know processes, `race` knows turns, `rows` knows arithmetic.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calotype import __version__
from calotype.backends import unavailable
from calotype.benchmarks import environments, peaks, watch
from calotype.benchmarks.cases import Case
from calotype.benchmarks.contenders import PEERS, Contender
from calotype.benchmarks.jobs import job_of, need_bytes, source_of, work_of
from calotype.benchmarks.lane import Lane, Sample, Shot
from calotype.benchmarks.plans import Built, needs_plan, plan_for
from calotype.benchmarks.race import Limits, qualify, race, ratio_of
from calotype.benchmarks.record import PICTURES, Recorded, Row, Run, file_name
from calotype.benchmarks.reference import OURS, shots_of
from calotype.benchmarks.rows import quality_of, row_of
from calotype.errors import CalotypeError, InputError
from calotype.export.source import Source
from calotype.machine import look

Tell = Callable[[str], None]
_TICKS_S = 0.03  # of others' work below which a picture is not called disturbed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made. `output` is the folder for the record and the pictures."""

    preset: str
    command: str
    output: Path
    threads: int
    timeout_s: float = 1800.0  # of anything a worker is asked; compilers take minutes
    clip_model: Path | None = None
    tell: Tell = print


def run(cases: Sequence[Case], settings: Settings) -> Recorded:
    """Run all cases; a row is there for every contender of each, come what may."""
    began = time.monotonic()
    device = "cuda" if any(case.device == "cuda" for case in cases) and has_gpu() else "cpu"
    settings.tell("measuring the machine's peaks")
    seen = watch.Watch()
    found = peaks.measure(threads=settings.threads, device=device)
    busy = watch.disturbed(seen.stop().share)
    rows: list[Row] = []
    for case in cases:
        settings.tell(f"case {case.id}")
        rows += _CaseRun(case, settings, found).rows()
    return Recorded(
        run=replace(
            _described(settings, device, found),
            seconds=time.monotonic() - began,
            notes=("other work kept the machine busy while its peaks were measured: they are too low",) if busy else (),
        ),
        rows=tuple(rows),
        folder=settings.output,
    )


class _CaseRun:
    """One case. Whatever stops it becomes the reason of its rows."""

    def __init__(self, case: Case, settings: Settings, found: Mapping[str, float | None]) -> None:
        self._case, self._settings, self._peaks = case, settings, found
        self._lanes: list[Lane] = []

    def rows(self) -> list[Row]:
        case = self._case
        if case.device == "cuda" and not has_gpu():
            return self._none("this case is for an NVIDIA GPU, and this machine has none")
        try:
            source = source_of(case)
            job = job_of(case, source, threads=self._settings.threads)
            refused = self._enter(source, job)
            shots = self._shots(source, job) if self._lanes else []
        except CalotypeError as failed:
            return self._none(str(failed))
        try:
            return self._raced(source, shots, refused)
        finally:
            for lane in self._lanes:
                lane.close()

    def _none(self, reason: str) -> list[Row]:
        self._settings.tell(reason)
        return [_refused(self._case, contender, reason) for contender in self._case.contenders]

    def _shots(self, source: Source, job: Mapping[str, Any]) -> list[Shot]:
        self._settings.tell("painting float32 eager's pictures, which all others are held against")
        # A case of fakes alone (the instrument's own test) has a fake for its reference.
        fake = all(c.backend == "fake" for c in self._case.contenders)
        told = {**job, "backend": "fake" if fake else "eager"}
        timeout_s, threads = self._settings.timeout_s, self._settings.threads
        return shots_of(self._case, told, source.fingerprint, threads=threads, timeout_s=timeout_s)

    def _enter(self, source: Source, job: Mapping[str, Any]) -> dict[str, str]:
        """Give every contender that can be started a lane; the others' reasons."""
        refused: dict[str, str] = {}
        for contender in self._case.contenders:
            try:
                self._lanes.append(self._lane(contender, source, job))
            except CalotypeError as failed:
                refused[contender.name] = str(failed)
                self._settings.tell(f"{contender.name}: {failed}")
        return refused

    def _lane(self, contender: Contender, source: Source, job: Mapping[str, Any]) -> Lane:
        python, file = (Path(sys.executable), OURS) if contender.is_ours else _peer(contender, self._case)
        built = self._built(contender, source)
        told = {
            **{"backend": contender.backend, "precision": contender.precision, "settings": dict(contender.settings)},
            "plan": None if built is None else str(built.folder),
            **({} if built is None else {"build": {"build_s": built.seconds, "build_when": built.when}}),
        }
        return Lane(
            contender=contender,
            python=python,
            file=file,
            job={**job, **told},
            threads=self._settings.threads,
            timeout_s=self._settings.timeout_s,
            need_bytes=need_bytes(self._case, source),
        )

    def _built(self, contender: Contender, source: Source) -> Built | None:
        if contender.is_ours and (why_not := unavailable(contender.backend) if needs_plan(contender) else None):
            raise InputError(why_not)
        reads_ours = not contender.is_ours and "provider" in contender.settings
        if not needs_plan(contender) and not reads_ours:
            return None
        self._settings.tell(f"building (or finding) the plan of {contender.name}")
        exact = replace(contender, backend="onnxruntime", precision="fp32") if reads_ours else contender
        return plan_for(self._case, source, exact)

    def _raced(self, source: Source, shots: Sequence[Shot], refused: Mapping[str, str]) -> list[Row]:
        tell, case, turns, base = self._settings.tell, self._case, [], None
        if shots:
            qualify(self._lanes, shots[0], tell)
            base = _base(self._lanes)
        if base is not None:
            turns = race(
                self._lanes, base, shots, Limits(rounds=case.rounds, budget_s=case.budget_s), self._timed, tell
            )
        rows = {c.name: _refused(case, c, refused[c.name]) for c in case.contenders if c.name in refused}
        if self._lanes:
            work = work_of(case, source, shots[0].prompts)
            self._keep("reference", [wanted for shot in shots for wanted in shot.wanted])
            for lane in self._lanes:
                ratio = None if base is None else ratio_of(lane, base, turns)
                row = row_of(case, lane, ratio=ratio, work=work, peaks=self._peaks)
                found = quality_of(case, lane, shots, self._settings.clip_model)
                rows[lane.contender.name] = replace(row, quality=found, **_build_of(lane))
                self._keep(lane.contender.name, list(lane.pictures.values()))
        return [rows[contender.name] for contender in case.contenders]

    def _keep(self, name: str, pictures: Sequence[np.ndarray[Any, Any]]) -> None:
        folder = self._settings.output / PICTURES / file_name(self._case.id)
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{file_name(name)}-{i}.png")

    def _timed(self, lane: Lane, shot: Shot) -> Sample | None:
        before, seen = self._energy_j(), watch.Watch([lane.pid] if lane.pid else [])
        sample = lane.paint(shot)
        if sample is None:
            return None
        load, after = seen.stop(), self._energy_j()
        # The system counts in hundredths of a second: of a short picture a single one would be a large share.
        others = watch.disturbed(load.share) and load.share * load.seconds > _TICKS_S
        return replace(sample, disturbed=others, energy_j=None if None in (before, after) else after - before)

    def _energy_j(self) -> Any:
        card = watch.gpu() if self._case.device == "cuda" else None
        return None if card is None else card.energy_j


def _base(lanes: Sequence[Lane]) -> Lane | None:
    """What the others are held against: our fastest so far, or whoever is fastest where none of ours runs."""
    able = [lane for lane in lanes if not lane.out and lane.warm_s is not None]
    ours = [lane for lane in able if lane.contender.is_ours]
    return min(ours or able, key=lambda lane: lane.warm_s or 0.0, default=None)


def _build_of(lane: Lane) -> dict[str, Any]:
    """A plan's build is ours to tell; a peer's conversions are told by itself."""
    built = lane.job.get("build")
    return dict(built) if built and lane.contender.is_ours else {}


def _peer(contender: Contender, case: Case) -> tuple[Path, Path]:
    peer = PEERS[contender.maker]
    if peer.device not in ("any", case.device):
        raise InputError(f"{contender.maker} runs on {peer.device}, and this case on {case.device}")
    python = environments.python_of(peer.folder)
    if python is None:
        failed = environments.why_not(peer.folder)
        raise InputError(failed or f"its environment is not made yet: calotype bench peers {peer.folder}")
    return python, environments.worker_file(peer.folder)


def _refused(case: Case, contender: Contender, reason: str) -> Row:
    return Row(
        case=case.to_json(),
        case_id=case.id,
        contender=contender.name,
        maker=contender.maker,
        backend=contender.backend,
        precision=contender.precision,
        status="cannot",
        reason=reason,
    )


def has_gpu() -> bool:
    """Has the machine an NVIDIA GPU that its driver shows?"""
    return Path("/dev/nvidiactl").exists()


def _device_name(device: str) -> str:
    card = watch.gpu() if device == "cuda" else None
    return look().processor if card is None else card.name


def _described(settings: Settings, device: str, found: Mapping[str, float | None]) -> Run:
    return Run(
        preset=settings.preset,
        command=settings.command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=watch.commit(),
        device=_device_name(device),
        machine=json.loads(json.dumps(watch.machine())),  # as it will be read back
        threads=settings.threads,
        peaks=found,
        versions=watch.versions(),
    )
