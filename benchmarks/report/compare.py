"""What moved between two runs beyond noise, and what got worse.

A row is matched by its case and its contender. Its time *moved* when the interval of the ratio of medians, new to old,
excludes 1; it *regressed* when it moved to more than 1 + threshold. Two runs are two times of day, maybe two machines:
what the machine itself did is told, and the ratio without it; a row then regressed only if both ratios say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..measure.record import BUSY, Recorded, Row, Run
from .table_columns import honest, rate, title, why

RESAMPLES, SEED, COVERAGE = 4000, 0, 0.95
LEAST_SAMPLES = 6  # of either run; fewer give no interval that holds what it promises
PEAKS_APART = 0.05  # measured peaks that differ by more are another machine, or another state of it
PSNR_DROP_DB, PSNR_CEILING_DB = 1.0, 80.0  # above the ceiling it is single pixels, off by one level of 255
MEMORY_RISE = 0.05

Moved = Literal["slower", "faster", "level", "unknown"]  # unknown: too few samples for an interval


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row in both runs. Ratios are new to old: more than 1 is slower."""

    case_id: str
    title: str
    contender: str
    old_s: float | None
    new_s: float | None
    ratio: float | None
    low: float | None  # the interval of `ratio`, where the samples are enough
    high: float | None
    corrected: float | None  # without what the fp32 peak says of the machine; only where the machine moved
    moved: Moved | None  # None: not both have a speed
    regressions: tuple[str, ...]  # in words
    told: tuple[str, ...]  # what is no regression, and should be known


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows of two runs."""

    threshold: float
    machine: tuple[str, ...]  # how the machine differs, in words; nothing where it does not
    changes: tuple[Change, ...]
    only_old: tuple[str, ...]  # "CASE_ID CONTENDER"
    only_new: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Did anything get worse, past the threshold and beyond noise?"""
        return any(change.regressions for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"regressed": self.regressed, **asdict(self)}


def compare(old: Recorded, new: Recorded, *, threshold: float) -> Comparison:
    """Holds `new` against `old`; `threshold` 0.05 lets a row be 5 % slower."""
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
    """Where median(new) / median(old) lies: the percentile bootstrap of both medians (Efron 1979), with a fixed seed.

    None where either has fewer than LEAST_SAMPLES. Samples are taken as independent: a drift within a run is not seen.
    """
    if min(len(old), len(new)) < LEAST_SAMPLES:
        return None
    random = np.random.default_rng(SEED)
    ratios = _medians(random, new) / _medians(random, old)
    low, high = np.quantile(ratios, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _medians(random: np.random.Generator, samples: Sequence[float]) -> NDArray[np.float64]:
    """Of RESAMPLES draws with replacement."""
    drawn = random.choice(np.asarray(samples, dtype=np.float64), size=(RESAMPLES, len(samples)))
    medians: NDArray[np.float64] = np.median(drawn, axis=1)
    return medians


def _change(old: Row, new: Row, threshold: float, factor: float | None) -> Change:
    ratio = low = high = moved = None
    if old.speed and new.speed:
        ratio = new.speed.median_s / old.speed.median_s
        found = ratio_interval(old.speed.samples_s, new.speed.samples_s)
        low, high = found or (None, None)
        moved = _moved(low, high)
    corrected = None if ratio is None or factor is None else ratio * factor
    worse = [
        _status(old, new),
        _time(ratio, low, factor, threshold),
        *_quality(old, new),
        *_memory(old, new, threshold),
    ]
    return Change(
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
        told=tuple(_told(old, new, moved)),
    )


def _moved(low: float | None, high: float | None) -> Moved:
    if low is None or high is None:
        return "unknown"
    return "slower" if low > 1 else "faster" if high < 1 else "level"


def _status(old: Row, new: Row) -> str:
    return f"was ok, is {new.status}: {why(new)}" if old.status == "ok" != new.status else ""


def _time(ratio: float | None, low: float | None, factor: float | None, threshold: float) -> str:
    """Slower past the threshold, beyond noise; where the machine moved, also after what it did is taken out."""
    if ratio is None or low is None:
        return ""
    held = min(1.0, factor or 1.0)  # both ratios must show it: the peak is a measurement too
    if ratio * held <= 1 + threshold or low * held <= 1:
        return ""
    return f"{ratio - 1:.0%} slower (more than {threshold:.0%})"


def _quality(old: Row, new: Row) -> list[str]:
    if old.quality is None or new.quality is None:
        return []
    was, now = old.quality, new.quality
    worse = []
    if min(was.psnr_db, PSNR_CEILING_DB) - now.psnr_db > PSNR_DROP_DB:
        worse.append(f"PSNR fell from {was.psnr_db:.1f} to {now.psnr_db:.1f} dB")
    if was.judge is not None and now.judge is not None and now.judge < was.judge:
        worse.append(f"pictures judged right fell from {was.judge:.0%} to {now.judge:.0%}")
    return worse


def _memory(old: Row, new: Row, threshold: float) -> list[str]:
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


def _told(old: Row, new: Row, moved: Moved | None) -> list[str]:
    told = []
    if moved == "unknown" and old.speed and new.speed:
        counts = f"{len(old.speed.samples_s)} and {len(new.speed.samples_s)} samples"
        told.append(f"no interval: {counts}, {LEAST_SAMPLES} of each are needed")
    if old.status != "ok" and new.status == "ok":
        told.append(f"was {old.status}, is ok")
    if old.status != "ok" and new.status != "ok":
        told.append(f"still {new.status}" if old.status == new.status else f"was {old.status}, is {new.status}")
    if old.disturbed_rounds or new.disturbed_rounds:
        told.append(f"disturbed rounds: {old.disturbed_rounds} old, {new.disturbed_rounds} new")
    return told


def _machine(old: Run, new: Run) -> tuple[str, ...]:
    """How the two runs' machines differ, in words."""
    told = []
    if old.device != new.device:
        told.append(f"another device: {old.device}, now {new.device}")
    if old.threads != new.threads:
        told.append(f"{old.threads} threads, now {new.threads}")
    for name, was in old.peaks.items():
        now = new.peaks.get(name)
        if was and now and abs(now / was - 1) > PEAKS_APART:
            unit = "B" if name == "copy" else "FLOP"
            told.append(f"the measured {name} peak: {rate(was, unit)}, now {rate(now, unit)} ({now / was - 1:+.0%})")
    return tuple(told)


def _factor(old: Run, new: Run) -> float | None:
    """What a ratio of times is multiplied with to take the machine out of it."""
    was, now = old.peaks.get("fp32"), new.peaks.get("fp32")
    if not was or not now or abs(now / was - 1) <= PEAKS_APART or BUSY in (*old.notes, *new.notes):
        return None  # the same speed of arithmetic, or a figure that was measured beside other work
    return now / was
