"""One case, from the names of its contenders to their rows. A contender that cannot run gets a row with the reason.

This module knows the order of the work only: `contender_process` knows processes, `runner` knows turns, `results_row`
knows arithmetic.
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

from ..measure import system_load
from ..measure.record import IMAGES_FOLDER, ResultRow, file_name
from ..suite.cases import Case
from ..suite.contenders import Contender
from .contender_process import BenchmarkCall, ContenderProcess, Sample
from .reference import reference_calls
from .results_row import Workload, quality_of, result_row
from .runner import Round, RoundLimits, ShowLine, base_of, ratio_of, run_rounds, warm_up
from .start_contender import CaseContext, start_contender
from .workload import job_for, source_of, workload_of

_TICKS_S = 0.03  # less work of others does not disturb an image: the system counts in hundredths


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of a run. `output` is the folder for the record and the images."""

    preset: str
    command: str
    output: Path
    threads: int
    timeout_s: float = 1800.0  # for each request to a worker; compilers take minutes
    clip_model: Path | None = None
    show: ShowLine = print


def run_case(case: Case, settings: RunSettings, peaks: Mapping[str, float | None]) -> list[ResultRow]:
    """Return a row for every contender. An error of the complete case becomes the reason of all its rows."""
    if case.device == "cuda" and not system_load.has_gpu():
        return _all_unsupported(case, settings, "this case needs an NVIDIA GPU, and this machine has none")
    try:
        source = source_of(case)
        job = job_for(case, source, threads=settings.threads)
        work = workload_of(case, source)
        context = CaseContext(case=case, source=source, job=job, threads=settings.threads, timeout_s=settings.timeout_s)
        return _CaseRun(case, settings, context, work).rows(peaks)
    except CalotypeError as failed:
        return _all_unsupported(case, settings, str(failed))
    except Exception as failed:  # a fault of the suite must not lose the rows of other cases
        traceback.print_exc()
        return _all_unsupported(case, settings, f"the benchmark suite failed: {first_line(failed)}")


def _all_unsupported(case: Case, settings: RunSettings, reason: str) -> list[ResultRow]:
    settings.show(reason)
    return [_unsupported_row(case, contender, reason) for contender in case.contenders]


class _CaseRun:
    """A case in progress."""

    def __init__(self, case: Case, settings: RunSettings, context: CaseContext, work: Workload) -> None:
        self._case, self._settings, self._context, self._work = case, settings, context, work
        self._processes: list[ContenderProcess] = []

    def rows(self, peaks: Mapping[str, float | None]) -> list[ResultRow]:
        """Run the case and end all its processes."""
        refused = self._start_contenders()
        calls = self._reference_calls() if self._processes else []
        try:
            rounds, base = self._run_rounds(calls)
        finally:
            for process in self._processes:
                process.close()
        self._keep("reference", [image for call in calls for image in call.expected])
        rows = {row.contender: row for row in refused}
        rows |= {process.contender.name: self._row(process, base, rounds, peaks) for process in self._processes}
        for process in self._processes:
            quality = quality_of(self._case, process, calls, self._settings.clip_model)
            rows[process.contender.name] = replace(rows[process.contender.name], quality=quality)
            self._keep(process.contender.name, list(process.images.values()))
        return [rows[contender.name] for contender in self._case.contenders]

    def _start_contenders(self) -> list[ResultRow]:
        """Add a process for every contender that can run. Return the rows of the others."""
        refused = []
        for contender in self._case.contenders:
            self._settings.show(f"preparing {contender.name}")
            try:
                self._processes.append(start_contender(contender, self._context))
            except CalotypeError as failed:
                refused.append(_unsupported_row(self._case, contender, str(failed)))
                self._settings.show(f"{contender.name}: {failed}")
        return refused

    def _reference_calls(self) -> list[BenchmarkCall]:
        self._settings.show("generating the reference images with float32 eager")
        # A case with only fake contenders (a test of the suite) also has a fake reference.
        fake = all(c.backend == "fake" for c in self._case.contenders)
        job = {**self._context.job, "backend": "fake"} if fake else self._context.job
        fingerprint, context = self._context.source.fingerprint, self._context
        return reference_calls(self._case, job, fingerprint, threads=context.threads, timeout_s=context.timeout_s)

    def _run_rounds(self, calls: Sequence[BenchmarkCall]) -> tuple[list[Round], ContenderProcess | None]:
        case, show = self._case, self._settings.show
        if not calls:
            return [], None
        warm_up(self._processes, calls[0], show)
        base = base_of(self._processes)
        if base is None:
            return [], None
        limits = RoundLimits(rounds=case.rounds, budget_s=case.budget_s)
        rounds = run_rounds(self._processes, base, calls, limits=limits, timed=self._timed, show=show)
        return rounds, base_of(self._processes) if base.exclusion else base

    def _timed(self, process: ContenderProcess, call: BenchmarkCall) -> Sample | None:
        before, seen = self._energy_j(), system_load.LoadMonitor([process.pid] if process.pid else [])
        sample = process.generate(call)
        if sample is None:
            return None
        load, after = seen.stop(), self._energy_j()
        others = system_load.disturbed(load.share) and load.share * load.seconds > _TICKS_S
        energy = None if before is None or after is None else after - before
        return replace(sample, disturbed=others, energy_j=energy, clock_mhz=system_load.clock_mhz(self._case.device))

    def _energy_j(self) -> float | None:
        card = system_load.gpu() if self._case.device == "cuda" else None
        return None if card is None else card.energy_j

    def _row(
        self,
        process: ContenderProcess,
        base: ContenderProcess | None,
        rounds: Sequence[Round],
        peaks: Mapping[str, float | None],
    ) -> ResultRow:
        row = result_row(self._case, process, work=self._work, peaks=peaks)
        if row.speed is None or base is None:
            return row
        alike = base_of(self._processes, process.contender.precision)
        return replace(
            row,
            ratio=ratio_of(process, base, rounds),
            alike=None if alike in (None, base) else ratio_of(process, alike, rounds),
        )

    def _keep(self, name: str, images: Sequence[np.ndarray[Any, Any]]) -> None:
        folder = self._settings.output / IMAGES_FOLDER / file_name(self._case.id)
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{file_name(name)}-{i}.png")


def _unsupported_row(case: Case, contender: Contender, reason: str) -> ResultRow:
    return ResultRow(
        case=case.to_json(),
        case_id=case.id,
        contender=contender.name,
        maker=contender.maker,
        backend=contender.backend,
        precision=contender.precision,
        status="cannot",
        reason=reason,
    )
