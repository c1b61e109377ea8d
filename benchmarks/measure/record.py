"""The record of a benchmark run: one line of JSON for the run, and one for each row. These dataclasses are the schema.

A *row* is one contender at one case. Times are seconds, sizes are bytes, shares go from 0 to 1. A value that could not
be measured is null. This module knows neither how a value is measured nor how it is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from calotype.errors import InputError

BUSY = "other work kept the machine busy while its peaks were measured: they are too low"  # a note
SCHEMA = 2  # increase it if an old reader would misread new files
ROWS_FILE, IMAGES_FOLDER = "run.jsonl", "images"

Status = Literal["ok", "wrong", "cannot", "failed"]  # wrong: its images are; failed: it stopped during the run
Verdict = Literal["base", "ahead", "behind", "level", "unknown"]  # against the base; level: the interval contains 1
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of a complete image (or batch), from the prompt to uint8 on the host. Only rows with correct images have
    it.
    """

    samples_s: tuple[float, ...]  # one for each round, in order
    median_s: float
    p10_s: float
    p90_s: float
    images_per_s: float
    it_per_s: float | None  # U-Net calls a second, without text and decoding; null without parts


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Speed relative to the base, from the rounds of one run; more than 1 is faster."""

    base: str  # the base's contender
    median: float
    low: float | None  # the interval of the median; null if there are too few rounds
    high: float | None
    coverage: float  # of the interval: 0.95 or more, or 0 without one
    rounds: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class ComponentTime:
    """The share of one component in the time of an image."""

    calls: int  # for one image
    median_s: float  # all calls of one image together
    flops: int | None  # of all these calls
    utilization: float | None  # flops / (median_s x the machine's measured peak in this precision)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a contender's images, compared with float32 eager for the same prompts and seeds.

    The first image of each seed counts. All later images had to meet the same limits.
    """

    images: int  # their number
    psnr_db: float  # mean over the images, each at most 100
    psnr_min_db: float  # the worst image
    ssim: float
    relative_l2: float  # |got - expected| / |expected - its mean|: the error as a share of the contrast
    lpips: float | None = None
    clip: float | None = None  # cosine of image and prompt, and that of the reference
    clip_reference: float | None = None
    judge: float | None = None  # share of images that show their prompt (demo), and that of the reference
    judge_reference: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One contender at one case."""

    case: Mapping[str, Any]  # `suite.cases.Case` as plain data
    case_id: str
    contender: str  # for example calotype:openvino:bf16
    maker: str  # calotype, diffusers, ...
    backend: str
    precision: str
    status: Status
    reason: str = ""  # why the status is not ok
    speed: Speed | None = None
    ratio: Ratio | None = None
    alike: Ratio | None = None  # against our fastest contender of the same precision, if that is not the base
    parts: Mapping[str, ComponentTime] = field(default_factory=dict)
    flops: int | None = None  # of a complete image (or batch)
    utilization: float | None = None  # of the complete image
    load_s: float | None = None
    build_s: float | None = None  # null: nothing to build
    build_when: str = ""  # ISO date; empty: in this run
    first_s: float | None = None  # the first image of a new process, after loading
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    artifact_bytes: int | None = None
    energy_j: float | None = None  # for one image (or batch); GPU only
    quality: Quality | None = None
    clock_mhz: float | None = None  # median of the rounds; most virtual machines report a nominal clock
    disturbed_rounds: int = 0  # rounds in which other work kept the machine busy
    threads: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """The machine and the versions of the tools during a run."""

    preset: str
    command: str  # repeats the run
    date: str  # ISO 8601, UTC
    version: str  # of Calotype
    commit: str  # "" outside a repository; ends with "+" if files were changed
    device: str  # the name of the processor or GPU
    machine: Mapping[str, Any]  # cores, memory, features, clocks
    threads: int
    peaks: Mapping[str, float | None]  # measured: fp32, bf16, fp16, int8, fp8 in FLOP/s; copy in bytes/s
    versions: Mapping[str, str]
    seconds: float = 0.0  # of the complete run
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run with its rows. `folder` contains images/CASE_ID/CONTENDER-i.png if the images were kept."""

    run: Run
    rows: tuple[ResultRow, ...]
    folder: Path | None = None

    def images(self, row: ResultRow) -> list[Path]:
        """Return the files of the row's images, in the order of the prompts."""
        return self._images(row.case_id, row.contender)

    def reference(self, row: ResultRow) -> list[Path]:
        """Return the files of the images of float32 eager for the row's case."""
        return self._images(row.case_id, "reference")

    def _images(self, case_id: str, contender: str) -> list[Path]:
        place = None if self.folder is None else self.folder / IMAGES_FOLDER / file_name(case_id)
        if place is None or not place.is_dir():
            return []
        pattern = re.compile(re.escape(file_name(contender)) + r"-(\d+)\.png")
        matches = {path: pattern.fullmatch(path.name) for path in place.iterdir()}
        return sorted((path for path, m in matches.items() if m), key=lambda path: int(path.stem.rpartition("-")[2]))


def file_name(words: str) -> str:
    """Return the name of a case or a contender as a safe file name."""
    return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in words)


def write(recorded: RunRecord, folder: Path) -> Path:
    """Write the run as JSON lines to ROWS_FILE in `folder`, in one atomic step."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "run", "schema": SCHEMA, **asdict(recorded.run)}]
    lines += [{"kind": "row", "schema": SCHEMA, **asdict(row)} for row in recorded.rows]
    path = folder / ROWS_FILE
    fresh = path.with_suffix(".part")
    fresh.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    fresh.replace(path)
    return path


def read(path: Path) -> RunRecord:
    """Read a run from its folder or its JSON lines. Raises `InputError` for anything else."""
    file = path / ROWS_FILE if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        kinds = [(line.pop("kind"), line.pop("schema")) for line in lines]
        if {schema for _, schema in kinds} <= {SCHEMA}:
            (run,) = [_build(Run, line) for line, (kind, _) in zip(lines, kinds, strict=True) if kind == "run"]
            rows = [_build(ResultRow, line) for line, (kind, _) in zip(lines, kinds, strict=True) if kind == "row"]
            return RunRecord(run=run, rows=tuple(rows), folder=file.parent)
    except OSError as error:
        message = f"cannot read {file}: {error.strerror}. Pass the folder of a run, or its {ROWS_FILE}."
        raise InputError(message, argument="path", got=str(file)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"cannot read {file}: it is not a benchmark run ({type(error).__name__}: {error})."
        raise InputError(message, argument="path", got=str(file)) from None
    got = sorted({schema for _, schema in kinds})
    message = f"cannot read {file}: got schema {got}, expected {SCHEMA}. Repeat the run."
    raise InputError(message, argument="path", got=str(file))


def _build(kind: type[T], data: Mapping[str, Any]) -> T:
    """Build a dataclass and its fields from plain data. Raises `ValueError` for an unknown name (another schema)."""
    hints = get_type_hints(kind)
    if unknown := sorted(data.keys() - hints.keys()):
        raise ValueError(f"unknown fields {unknown}")
    return kind(**{name: _value(hints[name], value) for name, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    inner: Any = next((a for a in getattr(hint, "__args__", ()) if is_dataclass(a)), None)
    if isinstance(value, list):
        return tuple(value)
    if inner is ComponentTime:
        return {name: _build(ComponentTime, part) for name, part in value.items()}
    return value if inner is None or value is None else _build(inner, value)
