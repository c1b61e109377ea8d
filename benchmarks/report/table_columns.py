"""What is told of a row, in words: one list of columns for the terminal, the page and RESULTS.md.

A row whose status is not "ok" has no speed here, whatever its record says: `honest` is the one door to a row's times.
Knows nothing of how a table is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..measure.record import Quality, Ratio, Recorded, Row, Speed

NONE = ""  # what was not measured is left empty: a dash would have to be read


def honest(row: Row) -> Row:
    """The row without any figure of speed, unless its pictures are right."""
    if row.status == "ok":
        return row
    return replace(row, speed=None, ratio=None, alike=None, parts={}, utilisation=None, first_s=None, energy_j=None)


def by_case(recorded: Recorded) -> list[tuple[str, tuple[Row, ...]]]:
    """The cases' titles with their rows, both in the order of the run."""
    cases: dict[str, list[Row]] = {}
    for row in recorded.rows:
        cases.setdefault(row.case_id, []).append(honest(row))
    return [(title(rows[0].case) or case_id, tuple(rows)) for case_id, rows in cases.items()]


def title(case: Mapping[str, Any]) -> str:
    """A case in words: "demo, text to image, 128 x 128 px, 20 steps of dpm++2m, guidance 5"."""
    said = [str(case["model"]).rstrip("/").rpartition("/")[2]] if case.get("model") else []
    if case.get("task"):
        said.append(str(case["task"]).replace("-", " ").replace("_", " "))
    if case.get("width") and case.get("height"):
        said.append(f"{case['width']} × {case['height']} px")
    if (case.get("batch") or 1) > 1:
        said.append(f"batch of {case['batch']}")
    if case.get("steps"):
        steps = f"{case['steps']} step" + ("" if case["steps"] == 1 else "s")
        sampler = "the model's own sampler" if case.get("sampler") == "own" else case.get("sampler")
        said.append(f"{steps} of {sampler}" if sampler else steps)
    if case.get("guidance") is not None:
        said.append(f"guidance {case['guidance']:g}" if case["guidance"] > 1 else "no guidance")
    nets = [str(c).rstrip("/").rpartition("/")[2] for c in case.get("controlnets") or ()]
    if nets:
        said.append(f"{len(nets)} ControlNet{'s' if len(nets) > 1 else ''} ({', '.join(nets)})")
    return ", ".join(said)


def why(row: Row) -> str:
    """What stands where the speed would: by how much the pictures are wrong, or what stopped the contender."""
    if row.status != "wrong" or row.quality is None:
        return row.reason or "no reason was recorded"
    q = row.quality
    told = f"PSNR {q.psnr_db:.1f} dB (worst picture {q.psnr_min_db:.1f} dB), SSIM {q.ssim:.3f}"
    told += "" if q.judge is None else f", {q.judge:.0%} judged right"
    if q.judge is not None and q.judge_reference is not None:
        told += f" (reference {q.judge_reference:.0%})"
    return told + (f": {row.reason}" if row.reason else "")


def digits(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 123; never an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def size(count: float) -> str:
    """Bytes, in the largest unit that leaves a whole one."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def rate(per_second: float, unit: str) -> str:
    """12.3 GFLOP/s or 4.56 GB/s: decimal, as makers of processors count."""
    for sign in ("", "k", "M", "G", "T"):
        if per_second < 1000:
            return f"{digits(per_second)} {sign}{unit}/s"
        per_second /= 1000
    return f"{digits(per_second)} P{unit}/s"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One thing that is told of a row; `value` is what it is sorted by."""

    key: str
    head: str
    value: Callable[[Row], float | str | None]
    text: Callable[[Any], str]  # of a value that is there
    tells: str
    words: bool = False  # set to the left, and sorted as words

    def cell(self, row: Row) -> str:
        value = self.value(honest(row))
        return NONE if value is None else self.text(value)


def _speed(read: Callable[[Speed], float | str | None]) -> Callable[[Row], float | str | None]:
    return lambda row: None if row.speed is None else read(row.speed)


def _ratio(read: Callable[[Ratio], float | str | None]) -> Callable[[Row], float | str | None]:
    return lambda row: None if row.ratio is None else read(row.ratio)


def _quality(read: Callable[[Quality], float | str | None]) -> Callable[[Row], float | str | None]:
    return lambda row: None if row.quality is None else read(row.quality)


def interval(ratio: Ratio) -> str | None:
    """The interval as words; None where the rounds were too few, and for the base itself."""
    if ratio.low is None or ratio.high is None or ratio.verdict == "base":
        return None
    return f"{ratio.low:.2f}–{ratio.high:.2f}"


def _versus(ratio: Ratio) -> float | None:
    return None if ratio.verdict == "base" else ratio.median


def _alike(row: Row) -> str | None:
    """As many times as fast as our fastest of the row's precision, and whether that is sure."""
    if row.alike is None:
        return None
    return "ours" if row.alike.verdict == "base" else f"{row.alike.median:.2f}x {row.alike.verdict}"


def _spread(speed: Speed) -> str:
    return f"{digits(speed.p10_s)}–{digits(speed.p90_s)}"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


Read = Callable[[Row], float | str | None]


def _c(key: str, head: str, value: Read, text: Callable[[Any], str], tells: str) -> Column:
    words = key in ("contender", "precision", "status", "spread", "interval", "verdict", "alike")
    return Column(key=key, head=head, value=value, text=text, tells=tells, words=words)


_ALL = (
    _c("contender", "contender", lambda r: r.contender, str, "maker, backend and precision"),
    _c("precision", "precision", lambda r: r.precision, str, "of the networks"),
    _c("status", "status", lambda r: r.status, str, "only ok rows have a speed"),
    _c("median", "seconds", _speed(lambda s: s.median_s), digits, "median of a whole picture or batch"),
    _c("spread", "p10–p90", _speed(_spread), str, "eight of ten pictures took this long, in seconds"),
    _c("rounds", "n", _speed(lambda s: len(s.samples_s)), str, "timed pictures or batches"),
    _c("disturbed", "disturbed", lambda r: r.disturbed_rounds or None, str, "rounds with other load on the machine"),
    _c("images", "images/s", _speed(lambda s: s.images_per_s), digits, "pictures a second"),
    _c("its", "it/s", _speed(lambda s: s.it_per_s), digits, "U-Net calls a second inside the loop"),
    _c("ratio", "vs. base", _ratio(_versus), _times, "how many times as fast as the base; more is faster"),
    _c("interval", "interval", _ratio(interval), str, "where the true ratio lies, with 95 % certainty"),
    _c("alike", "like for like", _alike, str, "against our fastest of the same precision, where that is not the base"),
    _c("verdict", "verdict", _ratio(lambda r: r.verdict), str, "ahead or behind only when the whole interval is"),
    _c(
        "psnr",
        "PSNR dB",
        _quality(lambda q: q.psnr_db),
        "{:.1f}".format,
        "to float32 eager's pictures: mean, at most 100",
    ),
    _c("worst", "worst dB", _quality(lambda q: q.psnr_min_db), "{:.1f}".format, "PSNR of the worst picture"),
    _c("ssim", "SSIM", _quality(lambda q: q.ssim), "{:.3f}".format, "structural similarity, at most 1"),
    _c("judge", "judge", _quality(lambda q: q.judge), _share, "pictures that show what was asked"),
    _c("lpips", "LPIPS", _quality(lambda q: q.lpips), "{:.4f}".format, "perceptual distance; less is nearer"),
    _c("clip", "CLIP", _quality(lambda q: q.clip), "{:.3f}".format, "cosine of picture and prompt"),
    _c("memory", "memory", lambda r: r.host_peak_bytes, size, "peak of the process, on the host"),
    _c("device", "GPU mem.", lambda r: r.device_peak_bytes, size, "peak on the device"),
    _c("artifact", "artifact", lambda r: r.artifact_bytes, size, "on disk"),
    _c("first", "first s", lambda r: r.first_s, digits, "first picture of a fresh process, after loading"),
    _c("load", "load s", lambda r: r.load_s, digits, "loading, in a fresh process"),
    _c("build", "build s", lambda r: r.build_s, digits, "making what is loaded, once"),
    _c("utilisation", "util.", lambda r: r.utilisation, _share, "counted FLOPs / (time x the machine's measured peak)"),
    _c("energy", "joule", lambda r: r.energy_j, digits, "a picture or batch"),
)
COLUMNS: Mapping[str, Column] = {column.key: column for column in _ALL}


def filled(rows: tuple[Row, ...], keys: tuple[str, ...]) -> list[Column]:
    """Those of the columns that say something about one of the rows."""
    return [COLUMNS[key] for key in keys if any(COLUMNS[key].cell(row) for row in rows)]
