"""Comparison of two runs: rows that changed beyond noise, and regressions.

A row is identified by its case and its contender. Its time *moved* if the interval of the ratio of medians, new to old,
excludes 1. It *regressed* if it moved to more than 1 + threshold. Two runs happen at two times of day, perhaps on two
machines. The comparison therefore reports how the machine changed, and also a ratio corrected for it. A row regressed
only if both ratios show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..measure.record import BUSY, ResultRow, Run, RunRecord
from .columns import honest, rate, title, why

RESAMPLES, SEED, COVERAGE = 4000, 0, 0.95
MIN_SAMPLES = 6  # of each run; fewer give no reliable interval
PEAKS_APART = 0.05  # a larger difference of the peaks means another machine or another state
PSNR_DROP_DB, PSNR_CEILING_DB = 1.0, 80.0  # above the ceiling, single pixels differ by one level of 255
MEMORY_RISE = 0.05

Moved = Literal["slower", "faster", "level", "unknown"]  # unknown: too few samples for an interval


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """One row in both runs. Ratios are new to old: more than 1 is slower."""

    case_id: str
    title: str
    contender: str
    old_s: float | None
    new_s: float | None
    ratio: float | None
    low: float | None  # the interval of `ratio`, if there are enough samples
    high: float | None
    corrected: float | None  # corrected by the fp32 peak; only if the machine changed
    moved: Moved | None  # None: one run has no speed
    regressions: tuple[str, ...]  # as text
    notes: tuple[str, ...]  # remarks that are not regressions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows of two runs."""

    threshold: float
    machine: tuple[str, ...]  # how the machines differ; empty if they do not
    changes: tuple[RowChange, ...]
    only_old: tuple[str, ...]  # "CASE_ID CONTENDER"
    only_new: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether anything got worse, past the threshold and beyond noise."""
        return any(change.regressions for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {"regressed": self.regressed, **asdict(self)}


def compare(old: RunRecord, new: RunRecord, *, threshold: float) -> Comparison:
    """Compare `new` with `old`. A `threshold` of 0.05 allows a row to be 5 % slower."""
    was, now = ({(row.case_id, row.contender): honest(row) for row in one.rows} for one in (old, new))
    factor = _factor(old.run, new.run)
    return Comparison(
        threshold=threshold,
        machine=tuple(_machine(old.run, new.run)),
        changes=tuple(_change(was[key], row, threshold, factor) for key, row in now.items() if key in was),
        only_old=tuple(" ".join(key) for key in was if key not in now),
        only_new=tuple(" ".join(key) for key in now if key not in was),
    )


def ratio_interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of median(new) / median(old): the percentile bootstrap (Efron 1979) with a fixed seed.

    None if either run has fewer than MIN_SAMPLES. Samples count as independent, so a drift within a run is not
    detected.
    """
    if min(len(old), len(new)) < MIN_SAMPLES:
        return None
    random = np.random.default_rng(SEED)
    after, before = (np.median(random.choice(s, size=(RESAMPLES, len(s))), axis=1) for s in map(np.asarray, (new, old)))
    low, high = np.quantile(after / before, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _change(old: ResultRow, new: ResultRow, threshold: float, factor: float | None) -> RowChange:
    ratio = low = high = None
    moved: Moved | None = None
    if old.speed and new.speed:
        ratio, moved = new.speed.median_s / old.speed.median_s, "unknown"
        if between := ratio_interval(old.speed.samples_s, new.speed.samples_s):
            low, high = between
            moved = "slower" if low > 1 else "faster" if high < 1 else "level"
    regressions = list(_worse(old, new, threshold))
    # Both ratios must show it, because the peak is a measurement too.
    held = min(1.0, factor or 1.0)
    if ratio is not None and low is not None and ratio * held > 1 + threshold and low * held > 1:
        regressions.insert(0, f"{ratio - 1:.0%} slower (more than {threshold:.0%})")
    return RowChange(
        case_id=new.case_id,
        title=title(new.case),
        contender=new.contender,
        old_s=old.speed.median_s if old.speed else None,
        new_s=new.speed.median_s if new.speed else None,
        ratio=ratio,
        low=low,
        high=high,
        corrected=None if ratio is None or factor is None else ratio * factor,
        moved=moved,
        regressions=tuple(regressions),
        notes=tuple(_notes(old, new, moved)),
    )


def _worse(old: ResultRow, new: ResultRow, threshold: float) -> Iterator[str]:
    """Yield the regressions besides the time: status, images, memory."""
    if old.status == "ok" != new.status:
        yield f"was ok, is {new.status}: {why(new)}"
    if old.quality and new.quality:
        was, now = old.quality, new.quality
        if min(was.psnr_db, PSNR_CEILING_DB) - now.psnr_db > PSNR_DROP_DB:
            yield f"PSNR fell from {was.psnr_db:.1f} to {now.psnr_db:.1f} dB"
        if was.judge is not None and now.judge is not None and now.judge < was.judge:
            yield f"correct images (judge) fell from {was.judge:.0%} to {now.judge:.0%}"
    for where in ("host", "device"):
        before, after = (getattr(row, f"{where}_peak_bytes") for row in (old, new))
        if before and after and after > before * (1 + max(threshold, MEMORY_RISE)):
            yield f"{where} memory rose by {after / before - 1:.0%}"


def _notes(old: ResultRow, new: ResultRow, moved: Moved | None) -> Iterator[str]:
    if moved == "unknown" and old.speed and new.speed:
        counts = f"{len(old.speed.samples_s)} and {len(new.speed.samples_s)} samples"
        yield f"no interval: {counts}, each run needs {MIN_SAMPLES}"
    if old.status != "ok":
        yield f"still {new.status}" if old.status == new.status else f"was {old.status}, is {new.status}"
    if old.disturbed_rounds or new.disturbed_rounds:
        yield f"disturbed rounds: {old.disturbed_rounds} old, {new.disturbed_rounds} new"


def _machine(old: Run, new: Run) -> Iterator[str]:
    if old.device != new.device:
        yield f"another device: {old.device}, now {new.device}"
    if old.threads != new.threads:
        yield f"{old.threads} threads, now {new.threads}"
    for name, was in old.peaks.items():
        now = new.peaks.get(name)
        if was and now and abs(now / was - 1) > PEAKS_APART:
            change = f"{now / was - 1:+.0%}"
            yield f"the measured {name} peak: {rate(name, was)}, now {rate(name, now)} ({change})"


def _factor(old: Run, new: Run) -> float | None:
    """Return the factor that corrects a ratio of times for the machine, or None."""
    was, now = old.peaks.get("fp32"), new.peaks.get("fp32")
    if not was or not now or abs(now / was - 1) <= PEAKS_APART or BUSY in (*old.notes, *new.notes):
        return None  # the same speed, or a peak that other work disturbed
    return now / was
