"""What a run of the suite leaves: a line of JSON about the run, and one for each row. The schema is these dataclasses.

A *row* is one contender at one case. Times are seconds, sizes bytes, shares 0 to 1; what could not be measured is null.
Knows nothing of how anything is measured or shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from calotype.errors import InputError

BUSY = "other work kept the machine busy while its peaks were measured: they are too low"  # a note of a run
SCHEMA = 1  # raised when a reader of old files would misread new ones
ROWS_FILE, PICTURES = "run.jsonl", "pictures"

Status = Literal["ok", "wrong", "cannot", "failed"]  # wrong: its pictures are; failed: it broke on the way
Verdict = Literal["base", "ahead", "behind", "level", "unknown"]  # of the row against the base; level: 1 is inside


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of a whole picture (or batch), prompt in, uint8 on the host: of rows whose pictures are right."""

    samples_s: tuple[float, ...]  # of every round, in order
    median_s: float
    p10_s: float
    p90_s: float
    images_per_s: float
    it_per_s: float | None  # U-Net calls a second inside the loop: text and decoding left out; null without parts


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as the base, round by round in the same run; more than 1 is faster."""

    base: str  # the base's contender
    median: float
    low: float | None  # the interval of the median; null where the rounds are too few for one
    high: float | None
    coverage: float  # of the interval, at least 0.95 where there is one
    rounds: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component's share of a picture."""

    calls: int  # a picture
    median_s: float  # of all its calls in one picture together
    flops: int | None  # of all these calls
    utilisation: float | None  # flops / (median_s x the machine's measured peak in this precision)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A contender's pictures of all prompts against float32 eager's of the same prompts and seeds.

    Each as it was first painted; all later ones, timed or not, were held to the same bounds.
    """

    pictures: int
    psnr_db: float  # mean over the pictures, each at most 100
    psnr_min_db: float  # the worst picture
    ssim: float
    relative_l2: float  # of the difference to the reference's contrast: |got - wanted| / |wanted - its mean|
    lpips: float | None = None
    clip: float | None = None  # cosine of picture and prompt, and the reference's own
    clip_reference: float | None = None
    judge: float | None = None  # share of pictures that show what was asked (demo), and the reference's own
    judge_reference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one case."""

    case: Mapping[str, Any]  # `cases.Case` as plain data
    case_id: str
    contender: str  # its name: calotype:openvino:bf16
    maker: str  # calotype, diffusers, ...
    backend: str
    precision: str
    status: Status
    reason: str = ""  # why not, where the status is not ok
    speed: Speed | None = None
    ratio: Ratio | None = None
    alike: Ratio | None = None  # against our fastest of the same precision, where that is not the base
    parts: Mapping[str, Part] = field(default_factory=dict)
    flops: int | None = None  # of a whole picture (or batch)
    utilisation: float | None = None  # of the whole picture
    load_s: float | None = None
    build_s: float | None = None  # null: nothing has to be built
    build_when: str = ""  # ISO date; empty: in this run
    first_s: float | None = None  # the first picture of a fresh process, after loading
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    artifact_bytes: int | None = None
    energy_j: float | None = None  # a picture (or batch); GPU only
    quality: Quality | None = None
    clock_mhz: float | None = None  # the median of the rounds; a virtual machine mostly tells a nominal clock
    disturbed_rounds: int = 0  # rounds in which something else kept the machine busy
    threads: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """The machine and the tools, as they were."""

    preset: str
    command: str  # that makes it again
    date: str  # ISO 8601, UTC
    version: str  # of Calotype
    commit: str  # of the repository, "" outside one; with "+" where files were changed
    device: str  # the processor or GPU, in its own words
    machine: Mapping[str, Any]  # cores, memory, features, clocks
    threads: int
    peaks: Mapping[str, float | None]  # measured: fp32, bf16, fp16, int8, fp8 in FLOP/s; copy in bytes/s
    versions: Mapping[str, str]
    seconds: float = 0.0  # the whole run
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run with its rows; `folder` holds pictures/CASE_ID/CONTENDER-i.png where they were kept."""

    run: Run
    rows: tuple[Row, ...]
    folder: Path | None = None

    def pictures(self, row: Row) -> list[Path]:
        """The row's kept pictures, in the order of the prompts; those of contender "reference" are float32 eager's."""
        return picture_files(self.folder, row.case_id, row.contender)

    def reference(self, row: Row) -> list[Path]:
        """Float32 eager's pictures of the row's case."""
        return picture_files(self.folder, row.case_id, "reference")


def picture_files(folder: Path | None, case_id: str, contender: str) -> list[Path]:
    """The kept pictures of one contender."""
    if folder is None:
        return []
    name = file_name(contender)
    found = (folder / PICTURES / file_name(case_id)).glob(f"{name}-*.png")
    return sorted((p for p in found if p.stem[len(name) + 1 :].isdigit()), key=lambda p: int(p.stem[len(name) + 1 :]))


def file_name(words: str) -> str:
    """A case's or a contender's name as the name of a file."""
    return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in words)


def write(recorded: Recorded, folder: Path) -> Path:
    """The run as JSON lines, ROWS_FILE in `folder`; a line that begins whole is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "run", "schema": SCHEMA, **asdict(recorded.run)}]
    lines += [{"kind": "row", "schema": SCHEMA, **asdict(row)} for row in recorded.rows]
    path = folder / ROWS_FILE
    fresh = path.with_suffix(".part")
    fresh.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    fresh.replace(path)
    return path


def read(path: Path) -> Recorded:
    """A run from its folder or its JSON lines. Raises `InputError` in one sentence where it is none."""
    file = path / ROWS_FILE if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        schemas = {line["schema"] for line in lines}
        if schemas != {SCHEMA}:
            raise InputError(f"{file} is of schema {sorted(schemas)}, and {SCHEMA} is read here; make the run again.")
        (run,) = [_made(Run, line) for line in lines if line["kind"] == "run"]
        rows = tuple(_made(Row, line) for line in lines if line["kind"] == "row")
    except OSError as failed:
        raise InputError(
            f"{file} cannot be read ({failed.strerror}); give a run's folder or its {ROWS_FILE}."
        ) from None
    except (ValueError, KeyError, TypeError) as broken:
        if isinstance(broken, InputError):
            raise
        raise InputError(f"{file} is no run of the benchmark suite ({type(broken).__name__}: {broken}).") from None
    return Recorded(run=run, rows=rows, folder=file.parent)


T = TypeVar("T")


def _made(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from plain data, and so its fields. A name that is not known belongs to another schema: an error."""
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in data.items() if name not in ("kind", "schema")}
    if set(given) - known:
        raise ValueError(f"unknown fields {sorted(set(given) - known)}")
    return kind(**{name: _value(hints[name], value) for name, value in given.items()})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    inner = [a for a in getattr(hint, "__args__", ()) if isinstance(a, type) and is_dataclass(a)]
    if isinstance(value, list):
        return tuple(value)
    if inner and isinstance(value, dict):
        whole = inner[0]
        return {n: _made(whole, v) for n, v in value.items()} if whole is Part else _made(whole, value)
    return value
