"""One case from its contenders' names to their rows: who can is opened, judged and raced; who cannot has a reason.

The order of the work, and nothing else: lanes know processes, `race` knows turns, `rows` knows arithmetic.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calotype.errors import CalotypeError, first_line

from ..measure import system_load as watch
from ..measure.record import PICTURES, Row, file_name
from ..suite.cases import Case
from ..suite.contenders import Contender
from .contender_process import Lane, Sample, Shot
from .reference import shots_of
from .results_row import Work, quality_of, row_of
from .runner import Limits, Round, Tell, base_of, qualify, race, ratio_of
from .start_contender import Entrance, enter
from .workload import job_of, source_of, work_of

_TICKS_S = 0.03  # of others' work below which a picture is not called disturbed: the system counts in hundredths


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


def rows_of(case: Case, settings: Settings, peaks: Mapping[str, float | None]) -> list[Row]:
    """A row for every contender, come what may: what stops the whole case is the reason of all its rows."""
    if case.device == "cuda" and not watch.has_gpu():
        return _none(case, settings, "this case is for an NVIDIA GPU, and this machine has none")
    try:
        source = source_of(case)
        job = job_of(case, source, threads=settings.threads)
        work = work_of(case, source)
        entrance = Entrance(case=case, source=source, job=job, threads=settings.threads, timeout_s=settings.timeout_s)
        return _CaseRun(case, settings, entrance, work).rows(peaks)
    except CalotypeError as failed:
        return _none(case, settings, str(failed))
    except Exception as failed:  # a fault of the suite's own must not take the other cases' rows with it
        traceback.print_exc()
        return _none(case, settings, f"the suite itself failed: {first_line(failed)}")


def _none(case: Case, settings: Settings, reason: str) -> list[Row]:
    settings.tell(reason)
    return [_refused(case, contender, reason) for contender in case.contenders]


class _CaseRun:
    """A case under way."""

    def __init__(self, case: Case, settings: Settings, entrance: Entrance, work: Work) -> None:
        self._case, self._settings, self._entrance, self._work = case, settings, entrance, work
        self._lanes: list[Lane] = []

    def rows(self, peaks: Mapping[str, float | None]) -> list[Row]:
        """Run it; no process is left behind."""
        refused = self._enter()
        shots = self._shots() if self._lanes else []
        try:
            rounds, base = self._race(shots)
        finally:
            for lane in self._lanes:
                lane.close()
        self._keep("reference", [wanted for shot in shots for wanted in shot.wanted])
        rows = {row.contender: row for row in refused}
        rows |= {lane.contender.name: self._row(lane, base, rounds, peaks) for lane in self._lanes}
        for lane in self._lanes:
            found = quality_of(self._case, lane, shots, self._settings.clip_model)
            rows[lane.contender.name] = replace(rows[lane.contender.name], quality=found)
            self._keep(lane.contender.name, list(lane.pictures.values()))
        return [rows[contender.name] for contender in self._case.contenders]

    def _enter(self) -> list[Row]:
        """Give every contender that can be started a lane; the rows of the others."""
        refused = []
        for contender in self._case.contenders:
            self._settings.tell(f"entering {contender.name}")
            try:
                self._lanes.append(enter(contender, self._entrance))
            except CalotypeError as failed:
                refused.append(_refused(self._case, contender, str(failed)))
                self._settings.tell(f"{contender.name}: {failed}")
        return refused

    def _shots(self) -> list[Shot]:
        self._settings.tell("painting float32 eager's pictures, which all others are held against")
        # A case of fakes alone (the instrument's own test) has a fake for its reference.
        fake = all(c.backend == "fake" for c in self._case.contenders)
        job = {**self._entrance.job, "backend": "fake"} if fake else self._entrance.job
        fingerprint, entrance = self._entrance.source.fingerprint, self._entrance
        return shots_of(self._case, job, fingerprint, threads=entrance.threads, timeout_s=entrance.timeout_s)

    def _race(self, shots: Sequence[Shot]) -> tuple[list[Round], Lane | None]:
        case, tell = self._case, self._settings.tell
        if not shots:
            return [], None
        qualify(self._lanes, shots[0], tell)
        base = base_of(self._lanes)
        if base is None:
            return [], None
        limits = Limits(rounds=case.rounds, budget_s=case.budget_s)
        rounds = race(self._lanes, base, shots, limits=limits, timed=self._timed, show=tell)
        return rounds, base_of(self._lanes) if base.out else base

    def _timed(self, lane: Lane, shot: Shot) -> Sample | None:
        before, seen = self._energy_j(), watch.Watch([lane.pid] if lane.pid else [])
        sample = lane.paint(shot)
        if sample is None:
            return None
        load, after = seen.stop(), self._energy_j()
        others = watch.disturbed(load.share) and load.share * load.seconds > _TICKS_S
        used = None if before is None or after is None else after - before
        return replace(sample, disturbed=others, energy_j=used, clock_mhz=watch.clock_mhz(self._case.device))

    def _energy_j(self) -> float | None:
        card = watch.gpu() if self._case.device == "cuda" else None
        return None if card is None else card.energy_j

    def _row(self, lane: Lane, base: Lane | None, rounds: Sequence[Round], peaks: Mapping[str, float | None]) -> Row:
        row = row_of(self._case, lane, work=self._work, peaks=peaks)
        if row.speed is None or base is None:
            return row
        alike = base_of(self._lanes, lane.contender.precision)
        return replace(
            row,
            ratio=ratio_of(lane, base, rounds),
            alike=None if alike in (None, base) else ratio_of(lane, alike, rounds),
        )

    def _keep(self, name: str, pictures: Sequence[np.ndarray[Any, Any]]) -> None:
        folder = self._settings.output / PICTURES / file_name(self._case.id)
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{file_name(name)}-{i}.png")


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
