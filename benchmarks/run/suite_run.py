"""A run of the suite: it measures the machine, then runs case after case, and writes each result at once."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from calotype.doctor.machine import inspect_machine
from calotype.system.version import __version__

from ..measure import peaks, system_load
from ..measure.record import BUSY, ResultRow, Run, RunRecord
from ..suite.cases import Case
from .case_run import RunSettings, run_case


def run(
    cases: Sequence[Case], settings: RunSettings, *, written: Callable[[RunRecord], object] = lambda recorded: None
) -> RunRecord:
    """Run all cases. The result has a row for every contender of each. `written` is called after each case."""
    began = time.monotonic()
    device = "cuda" if any(case.device == "cuda" for case in cases) and system_load.has_gpu() else "cpu"
    settings.show("measuring the peaks of the machine")
    monitor = system_load.LoadMonitor([os.getpid()])  # a child process measures them
    measured_peaks = peaks.measure(threads=settings.threads, device=device)
    notes = (BUSY,) if system_load.disturbed(monitor.stop().share) else ()
    described = _described(settings, device, measured_peaks, notes)
    rows: list[ResultRow] = []
    for done, case in enumerate(cases, start=1):
        settings.show(f"case {case.id}")
        rows += run_case(case, settings, measured_peaks)
        early = (
            () if done == len(cases) else (f"stopped after {done} of {len(cases)} cases",)
        )  # the note of a run that ends here
        described_run = replace(described, seconds=time.monotonic() - began, notes=(*notes, *early))
        recorded = RunRecord(run=described_run, rows=tuple(rows), folder=settings.output)
        written(recorded)
    return recorded


def _described(
    settings: RunSettings, device: str, measured_peaks: Mapping[str, float | None], notes: tuple[str, ...]
) -> Run:
    card = system_load.gpu() if device == "cuda" else None
    return Run(
        preset=settings.preset,
        command=settings.command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=system_load.commit(),
        device=inspect_machine().processor if card is None else card.name,
        machine=json.loads(json.dumps(system_load.machine())),  # as a reader gets it
        threads=settings.threads,
        peaks=measured_peaks,
        versions=system_load.versions(),
        notes=notes,
    )
