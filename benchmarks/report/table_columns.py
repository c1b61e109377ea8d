"""The columns of a row as text: one list for the terminal, the page and RESULTS.md.

A row whose status is not "ok" has no speed here, whatever its record contains: read a row's times only through
`honest`. This module does not draw tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..measure.record import Quality, Ratio, ResultRow, RunRecord, Speed

NONE = ""  # an empty cell: not measured


def honest(row: ResultRow) -> ResultRow:
    """Return the row without any figure of speed, unless its images are correct."""
    if row.status == "ok":
        return row
    return replace(row, speed=None, ratio=None, alike=None, parts={}, utilisation=None, first_s=None, energy_j=None)


def by_case(recorded: RunRecord) -> list[tuple[str, tuple[ResultRow, ...]]]:
    """Return the titles of the cases with their rows, both in the order of the run."""
    cases: dict[str, list[ResultRow]] = {}
    for row in recorded.rows:
        cases.setdefault(row.case_id, []).append(honest(row))
    return [(title(rows[0].case) or case_id, tuple(rows)) for case_id, rows in cases.items()]


def title(case: Mapping[str, Any]) -> str:
    """Describe a case: "demo, text to image, 128 × 128 px, 20 steps of dpm++2m, guidance 5"."""
    parts = [str(case["model"]).rstrip("/").rpartition("/")[2]] if case.get("model") else []
    if case.get("task"):
        parts.append(str(case["task"]).replace("-", " ").replace("_", " "))
    if case.get("width") and case.get("height"):
        parts.append(f"{case['width']} × {case['height']} px")
    if (case.get("batch") or 1) > 1:
        parts.append(f"batch of {case['batch']}")
    if case.get("steps"):
        steps = f"{case['steps']} step" + ("" if case["steps"] == 1 else "s")
        sampler = "the model's own sampler" if case.get("sampler") == "own" else case.get("sampler")
        parts.append(f"{steps} of {sampler}" if sampler else steps)
    if case.get("guidance") is not None:
        parts.append(f"guidance {case['guidance']:g}" if case["guidance"] > 1 else "no guidance")
    nets = [str(c).rstrip("/").rpartition("/")[2] for c in case.get("controlnets") or ()]
    if nets:
        parts.append(f"{len(nets)} ControlNet{'s' if len(nets) > 1 else ''} ({', '.join(nets)})")
    return ", ".join(parts)


def why(row: ResultRow) -> str:
    """Return why there is no speed: how wrong the images are, or what stopped the contender."""
    if row.status != "wrong" or row.quality is None:
        return row.reason or "no recorded reason"
    q = row.quality
    text = f"PSNR {q.psnr_db:.1f} dB (worst image {q.psnr_min_db:.1f} dB), SSIM {q.ssim:.3f}"
    text += "" if q.judge is None else f", judge {q.judge:.0%}"
    if q.judge is not None and q.judge_reference is not None:
        text += f" (reference {q.judge_reference:.0%})"
    return text + (f": {row.reason}" if row.reason else "")


def digits(value: float) -> str:
    """Format with three significant digits and no exponent: 0.0123, 1.23, 123."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def size(count: float) -> str:
    """Format bytes in a unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def rate(per_second: float, unit: str) -> str:
    """Format a rate with decimal units, as makers of processors do: 12.3 GFLOP/s, 4.56 GB/s."""
    for sign in ("", "k", "M", "G", "T"):
        if per_second < 1000:
            return f"{digits(per_second)} {sign}{unit}/s"
        per_second /= 1000
    return f"{digits(per_second)} P{unit}/s"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the tables. `value` is the sort key."""

    key: str
    head: str
    value: Callable[[ResultRow], float | str | None]
    text: Callable[[Any], str]  # formats a value
    description: str
    is_text: bool = False  # left-aligned, and sorted as text

    def cell(self, row: ResultRow) -> str:
        value = self.value(honest(row))
        return NONE if value is None else self.text(value)


def _speed(read: Callable[[Speed], float | str | None]) -> Callable[[ResultRow], float | str | None]:
    return lambda row: None if row.speed is None else read(row.speed)


def _ratio(read: Callable[[Ratio], float | str | None]) -> Callable[[ResultRow], float | str | None]:
    return lambda row: None if row.ratio is None else read(row.ratio)


def _quality(read: Callable[[Quality], float | str | None]) -> Callable[[ResultRow], float | str | None]:
    return lambda row: None if row.quality is None else read(row.quality)


def interval(ratio: Ratio) -> str | None:
    """Format the interval; None with too few rounds, and for the base itself."""
    if ratio.low is None or ratio.high is None or ratio.verdict == "base":
        return None
    return f"{ratio.low:.2f}–{ratio.high:.2f}"


def _versus(ratio: Ratio) -> float | None:
    return None if ratio.verdict == "base" else ratio.median


def _alike(row: ResultRow) -> str | None:
    """Format the ratio to our fastest contender of the same precision, and its verdict."""
    if row.alike is None:
        return None
    return "ours" if row.alike.verdict == "base" else f"{row.alike.median:.2f}x {row.alike.verdict}"


def _spread(speed: Speed) -> str:
    return f"{digits(speed.p10_s)}–{digits(speed.p90_s)}"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


CellValue = Callable[[ResultRow], float | str | None]


def _c(key: str, head: str, value: CellValue, text: Callable[[Any], str], description: str) -> Column:
    is_text = key in ("contender", "precision", "status", "spread", "interval", "verdict", "alike")
    return Column(key=key, head=head, value=value, text=text, description=description, is_text=is_text)


_ALL = (
    _c("contender", "contender", lambda r: r.contender, str, "maker, backend and precision"),
    _c("precision", "precision", lambda r: r.precision, str, "of the networks"),
    _c("status", "status", lambda r: r.status, str, "only ok rows have a speed"),
    _c("median", "seconds", _speed(lambda s: s.median_s), digits, "median of a complete image or batch"),
    _c("spread", "p10–p90", _speed(_spread), str, "the range of eight of ten images, in seconds"),
    _c("rounds", "n", _speed(lambda s: len(s.samples_s)), str, "timed images or batches"),
    _c("disturbed", "disturbed", lambda r: r.disturbed_rounds or None, str, "rounds with other load on the machine"),
    _c("images", "images/s", _speed(lambda s: s.images_per_s), digits, "images a second"),
    _c("its", "it/s", _speed(lambda s: s.it_per_s), digits, "U-Net calls a second inside the loop"),
    _c("ratio", "vs. base", _ratio(_versus), _times, "speed relative to the base; more is faster"),
    _c("interval", "interval", _ratio(interval), str, "contains the true ratio with 95 % certainty"),
    _c(
        "alike",
        "like for like",
        _alike,
        str,
        "relative to our fastest contender of the same precision, if that is not the base",
    ),
    _c("verdict", "verdict", _ratio(lambda r: r.verdict), str, "ahead or behind only if the complete interval is"),
    _c(
        "psnr",
        "PSNR dB",
        _quality(lambda q: q.psnr_db),
        "{:.1f}".format,
        "to the images of float32 eager: mean, at most 100",
    ),
    _c("worst", "worst dB", _quality(lambda q: q.psnr_min_db), "{:.1f}".format, "PSNR of the worst image"),
    _c("ssim", "SSIM", _quality(lambda q: q.ssim), "{:.3f}".format, "structural similarity, at most 1"),
    _c("judge", "judge", _quality(lambda q: q.judge), _share, "images that show their prompt"),
    _c("lpips", "LPIPS", _quality(lambda q: q.lpips), "{:.4f}".format, "perceptual distance; less is better"),
    _c("clip", "CLIP", _quality(lambda q: q.clip), "{:.3f}".format, "cosine of image and prompt"),
    _c("memory", "memory", lambda r: r.host_peak_bytes, size, "peak of the process on the host"),
    _c("device", "GPU mem.", lambda r: r.device_peak_bytes, size, "peak on the device"),
    _c("artifact", "artifact", lambda r: r.artifact_bytes, size, "on disk"),
    _c("first", "first s", lambda r: r.first_s, digits, "first image of a new process, after loading"),
    _c("load", "load s", lambda r: r.load_s, digits, "loading, in a new process"),
    _c("build", "build s", lambda r: r.build_s, digits, "building what is loaded, once"),
    _c("utilisation", "util.", lambda r: r.utilisation, _share, "counted FLOPs / (time x the machine's measured peak)"),
    _c("energy", "joule", lambda r: r.energy_j, digits, "for an image or batch"),
)
COLUMNS: Mapping[str, Column] = {column.key: column for column in _ALL}


def filled(rows: tuple[ResultRow, ...], keys: tuple[str, ...]) -> list[Column]:
    """Return the columns that have a value in at least one row."""
    return [COLUMNS[key] for key in keys if any(COLUMNS[key].cell(row) for row in rows)]
