"""A run of the suite: it measures the machine, then runs case after case, and hands over each result at once.

A contender that cannot run gets a row with the reason. This module knows the order of the work only:
`contender_process` knows processes, `runner` knows turns, `results_row` knows arithmetic.
"""

from __future__ import annotations

import datetime
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from calotype.doctor.machine import inspect_machine
from calotype.errors import CalotypeError, first_line
from calotype.system.nvidia import has_gpu
from calotype.system.version import __version__

from ..measure import peaks, system_load
from ..measure.correctness import Pixels
from ..measure.record import BUSY, IMAGES_FOLDER, ResultRow, Run, RunRecord, file_name
from ..suite.cases import Case
from .contender_process import BenchmarkCall, ContenderProcess, Sample
from .results_row import Peaks, quality_of, result_row, row_of
from .runner import Round, base_of, ratio_of, run_rounds, warm_up
from .start_contender import start_contender
from .workload import CaseContext, RunSettings, context_of, reference_calls

_TICKS_S = 0.03  # less work of others does not disturb an image: the system counts in hundredths


def run(
    cases: Sequence[Case], settings: RunSettings, *, written: Callable[[RunRecord], object] = lambda recorded: None
) -> RunRecord:
    """Run all cases. The result has a row for every contender of each. `written` is called after each case."""
    began = time.monotonic()
    device = "cuda" if any(case.device == "cuda" for case in cases) and has_gpu() else "cpu"
    settings.show("measuring the peaks of the machine")
    monitor = system_load.LoadMonitor([os.getpid()])  # a child process measures them
    measured = peaks.measure(threads=settings.threads, device=device)
    notes = (BUSY,) if monitor.stop().disturbs else ()
    card = system_load.gpu() if device == "cuda" else None
    described = Run(
        preset=settings.preset,
        command=settings.command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=system_load.commit(),
        device=inspect_machine().processor if card is None else card["name"],
        machine=json.loads(json.dumps(system_load.machine())),  # as a reader gets it
        threads=settings.threads,
        peaks=measured,
        versions=system_load.versions(),
    )
    rows: list[ResultRow] = []
    for done, case in enumerate(cases, start=1):
        settings.show(f"case {case.id}")
        rows += run_case(case, settings, measured)
        # The note of a run that ends here.
        early = () if done == len(cases) else (f"stopped after {done} of {len(cases)} cases",)
        described = replace(described, seconds=time.monotonic() - began, notes=(*notes, *early))
        recorded = RunRecord(run=described, rows=tuple(rows), folder=settings.output)
        written(recorded)
    return recorded


def run_case(case: Case, settings: RunSettings, measured: Peaks) -> list[ResultRow]:
    """Return a row for every contender. An error of the complete case becomes the reason of all its rows."""
    try:
        if case.device == "cuda" and not has_gpu():
            reason = "this case needs an NVIDIA GPU, and this machine has none"
        else:
            return _CaseRun(context_of(case, settings), measured).rows()
    except CalotypeError as failed:
        reason = str(failed)
    except Exception as failed:  # a fault of the suite must not lose the rows of other cases
        traceback.print_exc()
        reason = f"the benchmark suite failed: {first_line(failed)}"
    settings.show(reason)
    return [row_of(case, contender, "cannot", reason) for contender in case.contenders]


class _CaseRun:
    def __init__(self, context: CaseContext, peaks: Peaks) -> None:
        self._context, self._case, self._show = context, context.case, context.settings.show
        self._peaks = peaks
        self._processes: list[ContenderProcess] = []

    def rows(self) -> list[ResultRow]:
        """Run the case and end all its processes."""
        rows = self._start_contenders()
        calls: list[BenchmarkCall] = []
        if self._processes:
            self._show("generating the reference images with float32 eager")
            calls = reference_calls(self._context)
        try:
            rounds, base = self._run_rounds(calls)
        finally:
            for process in self._processes:
                process.close()
        self._keep("reference", [image for call in calls for image in call.expected])
        for process in self._processes:
            rows[process.contender.name] = self._row(process, base, rounds, calls)
            self._keep(process.contender.name, list(process.images.values()))
        return [rows[contender.name] for contender in self._case.contenders]

    def _start_contenders(self) -> dict[str, ResultRow]:
        refused = {}
        for contender in self._case.contenders:
            self._show(f"preparing {contender.name}")
            try:
                self._processes.append(start_contender(contender, self._context))
            except CalotypeError as failed:
                refused[contender.name] = row_of(self._case, contender, "cannot", str(failed))
                self._show(f"{contender.name}: {failed}")
        return refused

    def _run_rounds(self, calls: Sequence[BenchmarkCall]) -> tuple[list[Round], ContenderProcess | None]:
        if calls:
            warm_up(self._processes, calls[0], self._show)
        base = base_of(self._processes)
        if base is None:
            return [], None
        rounds = run_rounds(self._case, self._processes, base, calls, timed=self._timed, show=self._show)
        return rounds, base_of(self._processes) if base.exclusion else base

    def _timed(self, process: ContenderProcess, call: BenchmarkCall) -> Sample | None:
        before, monitor = self._energy_j(), system_load.LoadMonitor([process.pid] if process.pid else [])
        sample = process.generate(call)
        if sample is None:
            return None
        load, after = monitor.stop(), self._energy_j()
        return replace(
            sample,
            disturbed=load.disturbs and load.share * load.seconds > _TICKS_S,
            energy_j=None if before is None or after is None else after - before,
            clock_mhz=system_load.clock_mhz(self._case.device),
        )

    def _energy_j(self) -> float | None:
        card = system_load.gpu() if self._case.device == "cuda" else None
        return None if card is None else card["energy_j"]

    def _row(
        self,
        process: ContenderProcess,
        base: ContenderProcess | None,
        rounds: Sequence[Round],
        calls: Sequence[BenchmarkCall],
    ) -> ResultRow:
        row = result_row(self._context, process, peaks=self._peaks)
        row = replace(row, quality=quality_of(self._context, process, calls))
        if row.speed is None or base is None:
            return row
        alike = base_of(self._processes, process.contender.precision)
        return replace(
            row,
            ratio=ratio_of(process, base, rounds),
            alike=None if alike in (None, base) else ratio_of(process, alike, rounds),
        )

    def _keep(self, name: str, images: Sequence[Pixels]) -> None:
        folder = self._context.settings.output / IMAGES_FOLDER / file_name(self._case.id)
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{file_name(name)}-{i}.png")
