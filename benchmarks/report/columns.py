"""The columns of a row as text: one list for the terminal, the page and RESULTS.md.

A row whose status is not "ok" has no speed here, whatever its record contains: read a row's times only through
`honest`. This module does not draw tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..measure.record import Ratio, ResultRow, Run, RunRecord


def honest(row: ResultRow) -> ResultRow:
    """Return the row without any figure of speed, unless its images are correct."""
    if row.status == "ok":
        return row
    return replace(row, speed=None, ratio=None, alike=None, parts={}, utilization=None, first_s=None, energy_j=None)


def by_case(recorded: RunRecord) -> list[tuple[str, tuple[ResultRow, ...]]]:
    """Return the titles of the cases with their rows, both in the order of the run."""
    cases: dict[str, list[ResultRow]] = {}
    for row in recorded.rows:
        cases.setdefault(row.case_id, []).append(honest(row))
    return [(title(rows[0].case), tuple(rows)) for rows in cases.values()]


def title(case: Mapping[str, Any]) -> str:
    """Describe a case: "demo, text to image, 128 × 128 px, 20 steps of dpm++2m, guidance 5"."""
    sampler = "the model's own sampler" if case["sampler"] == "own" else case["sampler"]
    nets = [_last(net) for net in case["controlnets"]]
    parts = [_last(case["model"]), case["task"].replace("-", " "), f"{case['width']} × {case['height']} px"]
    parts += [f"batch of {case['batch']}"] if case["batch"] > 1 else []
    parts += [f"{case['steps']} step{'' if case['steps'] == 1 else 's'} of {sampler}"]
    parts += [f"guidance {case['guidance']:g}" if case["guidance"] > 1 else "no guidance"]
    parts += [f"{len(nets)} ControlNet{'s' if len(nets) > 1 else ''} ({', '.join(nets)})"] if nets else []
    return ", ".join(parts)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


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
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def size(count: float) -> str:
    """Format bytes in a unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def rate(name: str, per_second: float) -> str:
    """Format a peak with decimal units, as makers of processors do: 12.3 GFLOP/s, for "copy" 4.56 GB/s."""
    power = min(5, int(math.log10(max(per_second, 1)) // 3))
    unit = ("", "k", "M", "G", "T", "P")[power] + ("B" if name == "copy" else "FLOP")
    return f"{digits(per_second / 1000**power)} {unit}/s"


def peaks_of(run: Run) -> dict[str, str]:
    """Return the measured peaks as text."""
    return {name: rate(name, peak) for name, peak in run.peaks.items() if peak}


def facts(run: Run) -> dict[str, str]:
    """Return the facts about the machine as text."""
    values = {"device": run.device, "threads": str(run.threads)}
    values |= {name.removesuffix("_bytes").replace("_", " "): _fact(name, value) for name, value in run.machine.items()}
    return {name: text for name, text in values.items() if text}


def _fact(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(key, inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_fact(name, inner) for inner in value)
    if name.endswith("_bytes") and isinstance(value, int | float):
        return size(value)
    return "" if value is None else str(value)


def interval(ratio: Ratio | None) -> str | None:
    """Format the interval; None with too few rounds, and for the base itself."""
    if ratio is None or ratio.low is None or ratio.high is None or ratio.verdict == "base":
        return None
    return f"{ratio.low:.2f}–{ratio.high:.2f}"


@dataclass(frozen=True)
class Column:
    """One column of the tables."""

    key: str
    head: str
    read: str | Callable[[ResultRow], Any]  # a path of attributes, or what computes the value
    text: Callable[[Any], str]  # formats a value
    description: str

    @property
    def is_text(self) -> bool:
        """Whether the cells are sorted as text."""
        return self.text is str and self.key not in ("rounds", "disturbed")

    @property
    def is_name(self) -> bool:
        """Whether the cells are words, and not figures, which stand to the right."""
        return self.key in ("contender", "precision", "status", "verdict")

    def value(self, row: ResultRow) -> Any:
        """Return the value, which is also the sort key; None if it was not measured."""
        if callable(self.read):
            return self.read(row)
        value: Any = row
        for name in self.read.split("."):
            value = getattr(value, name, None)
        return value

    def cell(self, row: ResultRow) -> str:
        """Return the text; "" for a value that was not measured."""
        value = self.value(honest(row))
        return "" if value is None else self.text(value)


def _spread(row: ResultRow) -> str | None:
    return None if row.speed is None else f"{digits(row.speed.p10_s)}–{digits(row.speed.p90_s)}"


def _versus(row: ResultRow) -> float | None:
    return None if row.ratio is None or row.ratio.verdict == "base" else row.ratio.median


def _alike(row: ResultRow) -> str | None:
    if row.alike is None:
        return None
    return "ours" if row.alike.verdict == "base" else f"{row.alike.median:.2f}x {row.alike.verdict}"


_share, _times = "{:.0%}".format, "{:.2f}x".format
_ALIKE = "relative to our fastest contender of the same precision, if that is not the base"
_PSNR = "to the images of float32 eager: mean, at most 100"
_ALL = (
    Column("contender", "contender", "contender", str, "maker, backend and precision"),
    Column("precision", "precision", "precision", str, "of the networks"),
    Column("status", "status", "status", str, "only ok rows have a speed"),
    Column("median", "seconds", "speed.median_s", digits, "median of a complete image or batch"),
    Column("spread", "p10–p90", _spread, str, "the range of eight of ten images, in seconds"),
    Column("rounds", "n", lambda r: r.speed and len(r.speed.samples_s), str, "timed images or batches"),
    Column(
        "disturbed", "disturbed", lambda r: r.disturbed_rounds or None, str, "rounds with other load on the machine"
    ),
    Column("images", "images/s", "speed.images_per_s", digits, "images a second"),
    Column("its", "it/s", "speed.it_per_s", digits, "U-Net calls a second inside the loop"),
    Column("ratio", "vs. base", _versus, _times, "speed relative to the base; more is faster"),
    Column("interval", "interval", lambda r: interval(r.ratio), str, "contains the true ratio with 95 % certainty"),
    Column("alike", "like for like", _alike, str, _ALIKE),
    Column("verdict", "verdict", "ratio.verdict", str, "ahead or behind only if the complete interval is"),
    Column("psnr", "PSNR dB", "quality.psnr_db", "{:.1f}".format, _PSNR),
    Column("worst", "worst dB", "quality.psnr_min_db", "{:.1f}".format, "PSNR of the worst image"),
    Column("ssim", "SSIM", "quality.ssim", "{:.3f}".format, "structural similarity, at most 1"),
    Column("judge", "judge", "quality.judge", _share, "images that show their prompt"),
    Column("lpips", "LPIPS", "quality.lpips", "{:.4f}".format, "perceptual distance; less is better"),
    Column("clip", "CLIP", "quality.clip", "{:.3f}".format, "cosine of image and prompt"),
    Column("memory", "memory", "host_peak_bytes", size, "peak of the process on the host"),
    Column("device", "GPU mem.", "device_peak_bytes", size, "peak on the device"),
    Column("artifact", "artifact", "artifact_bytes", size, "on disk"),
    Column("first", "first s", "first_s", digits, "first image of a new process, after loading"),
    Column("load", "load s", "load_s", digits, "loading, in a new process"),
    Column("build", "build s", "build_s", digits, "building what is loaded, once"),
    Column("utilization", "util.", "utilization", _share, "counted FLOPs / (time x the machine's measured peak)"),
    Column("energy", "joule", "energy_j", digits, "for an image or batch"),
)
COLUMNS: Mapping[str, Column] = {column.key: column for column in _ALL}


def filled(rows: Sequence[ResultRow], keys: Sequence[str] = tuple(COLUMNS)) -> list[Column]:
    """Return the columns that have a value in at least one row."""
    return [COLUMNS[key] for key in keys if any(COLUMNS[key].cell(row) for row in rows)]
