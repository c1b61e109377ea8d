"""Comparison of two runs: rows that changed beyond noise, and regressions.

A row is identified by its case and its contender. Its time *moved* if the interval of the ratio of medians, new to old,
excludes 1. It *regressed* if it moved to more than 1 + threshold. Two runs happen at two times of day, perhaps on two
machines. The comparison therefore reports how the machine changed, and also a ratio corrected for it. A row regressed
only if both ratios show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..measure.record import BUSY, ResultRow, Run, RunRecord
from .table_columns import honest, rate, title, why

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
    machine = _machine(old.run, new.run)
    factor = _factor(old.run, new.run)
    return Comparison(
        threshold=threshold,
        machine=machine,
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
    ratios = _medians(random, new) / _medians(random, old)
    low, high = np.quantile(ratios, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _medians(random: np.random.Generator, samples: Sequence[float]) -> NDArray[np.float64]:
    """Return the medians of RESAMPLES draws with replacement."""
    drawn = random.choice(np.asarray(samples, dtype=np.float64), size=(RESAMPLES, len(samples)))
    medians: NDArray[np.float64] = np.median(drawn, axis=1)
    return medians


def _change(old: ResultRow, new: ResultRow, threshold: float, factor: float | None) -> RowChange:
    ratio = low = high = moved = None
    if old.speed and new.speed:
        ratio = new.speed.median_s / old.speed.median_s
        interval = ratio_interval(old.speed.samples_s, new.speed.samples_s)
        low, high = interval or (None, None)
        moved = _moved(low, high)
    corrected = None if ratio is None or factor is None else ratio * factor
    worse = [
        _status(old, new),
        _time(ratio, low, factor, threshold),
        *_quality(old, new),
        *_memory(old, new, threshold),
    ]
    return RowChange(
        case_id=new.case_id,
        title=title(new.case) or new.case_id,
        contender=new.contender,
        old_s=old.speed.median_s if old.speed else None,
        new_s=new.speed.median_s if new.speed else None,
        ratio=ratio,
        low=low,
        high=high,
        corrected=corrected,
        moved=moved,
        regressions=tuple(words for words in worse if words),
        notes=tuple(_notes(old, new, moved)),
    )


def _moved(low: float | None, high: float | None) -> Moved:
    if low is None or high is None:
        return "unknown"
    return "slower" if low > 1 else "faster" if high < 1 else "level"


def _status(old: ResultRow, new: ResultRow) -> str:
    return f"was ok, is {new.status}: {why(new)}" if old.status == "ok" != new.status else ""


def _time(ratio: float | None, low: float | None, factor: float | None, threshold: float) -> str:
    """Return a message if the row is slower past the threshold and beyond noise, also after the correction for the
    machine.
    """
    if ratio is None or low is None:
        return ""
    held = min(1.0, factor or 1.0)  # both ratios must show it, because the peak is a measurement too
    if ratio * held <= 1 + threshold or low * held <= 1:
        return ""
    return f"{ratio - 1:.0%} slower (more than {threshold:.0%})"


def _quality(old: ResultRow, new: ResultRow) -> list[str]:
    if old.quality is None or new.quality is None:
        return []
    was, now = old.quality, new.quality
    worse = []
    if min(was.psnr_db, PSNR_CEILING_DB) - now.psnr_db > PSNR_DROP_DB:
        worse.append(f"PSNR fell from {was.psnr_db:.1f} to {now.psnr_db:.1f} dB")
    if was.judge is not None and now.judge is not None and now.judge < was.judge:
        worse.append(f"correct images (judge) fell from {was.judge:.0%} to {now.judge:.0%}")
    return worse


def _memory(old: ResultRow, new: ResultRow, threshold: float) -> list[str]:
    allowed = max(threshold, MEMORY_RISE)
    peaks = {
        "host": (old.host_peak_bytes, new.host_peak_bytes),
        "device": (old.device_peak_bytes, new.device_peak_bytes),
    }
    return [
        f"{where} memory rose by {now / was - 1:.0%}"
        for where, (was, now) in peaks.items()
        if was and now and now > was * (1 + allowed)
    ]


def _notes(old: ResultRow, new: ResultRow, moved: Moved | None) -> list[str]:
    notes = []
    if moved == "unknown" and old.speed and new.speed:
        counts = f"{len(old.speed.samples_s)} and {len(new.speed.samples_s)} samples"
        notes.append(f"no interval: {counts}, each run needs {MIN_SAMPLES}")
    if old.status != "ok" and new.status == "ok":
        notes.append(f"was {old.status}, is ok")
    if old.status != "ok" and new.status != "ok":
        notes.append(f"still {new.status}" if old.status == new.status else f"was {old.status}, is {new.status}")
    if old.disturbed_rounds or new.disturbed_rounds:
        notes.append(f"disturbed rounds: {old.disturbed_rounds} old, {new.disturbed_rounds} new")
    return notes


def _machine(old: Run, new: Run) -> tuple[str, ...]:
    """Describe how the machines of the two runs differ."""
    notes = []
    if old.device != new.device:
        notes.append(f"another device: {old.device}, now {new.device}")
    if old.threads != new.threads:
        notes.append(f"{old.threads} threads, now {new.threads}")
    for name, was in old.peaks.items():
        now = new.peaks.get(name)
        if was and now and abs(now / was - 1) > PEAKS_APART:
            unit = "B" if name == "copy" else "FLOP"
            notes.append(f"the measured {name} peak: {rate(was, unit)}, now {rate(now, unit)} ({now / was - 1:+.0%})")
    return tuple(notes)


def _factor(old: Run, new: Run) -> float | None:
    """Return the factor that corrects a ratio of times for the machine, or None."""
    was, now = old.peaks.get("fp32"), new.peaks.get("fp32")
    if not was or not now or abs(now / was - 1) <= PEAKS_APART or BUSY in (*old.notes, *new.notes):
        return None  # the same speed, or a peak that other work disturbed
    return now / was
