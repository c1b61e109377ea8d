"""A run of the suite: the machine is measured, then case after case; what is done is written down at once."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from calotype.doctor.machine import inspect_machine
from calotype.system.version import __version__

from ..measure import peaks
from ..measure import system_load as watch
from ..measure.record import BUSY, Recorded, Row, Run
from ..suite.cases import Case
from .case_run import Settings, rows_of


def run(
    cases: Sequence[Case], settings: Settings, *, written: Callable[[Recorded], object] = lambda recorded: None
) -> Recorded:
    """Run all cases; a row is there for every contender of each, come what may. `written` is called after each."""
    began = time.monotonic()
    device = "cuda" if any(case.device == "cuda" for case in cases) and watch.has_gpu() else "cpu"
    settings.tell("measuring the machine's peaks")
    seen = watch.Watch([os.getpid()])  # they are measured in a child
    found = peaks.measure(threads=settings.threads, device=device)
    notes = (BUSY,) if watch.disturbed(seen.stop().share) else ()
    described = _described(settings, device, found, notes)
    rows: list[Row] = []
    for done, case in enumerate(cases, start=1):
        settings.tell(f"case {case.id}")
        rows += rows_of(case, settings, found)
        early = () if done == len(cases) else (f"stopped after {done} of {len(cases)} cases",)  # if nothing follows
        told = replace(described, seconds=time.monotonic() - began, notes=(*notes, *early))
        recorded = Recorded(run=told, rows=tuple(rows), folder=settings.output)
        written(recorded)
    return recorded


def _described(settings: Settings, device: str, found: Mapping[str, float | None], notes: tuple[str, ...]) -> Run:
    card = watch.gpu() if device == "cuda" else None
    return Run(
        preset=settings.preset,
        command=settings.command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=watch.commit(),
        device=inspect_machine().processor if card is None else card.name,
        machine=json.loads(json.dumps(watch.machine())),  # as it will be read back
        threads=settings.threads,
        peaks=found,
        versions=watch.versions(),
        notes=notes,
    )
