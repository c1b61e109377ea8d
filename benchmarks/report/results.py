"""Committed runs: results/NAME/run.jsonl, and RESULTS.md, which is generated from these files and nothing else."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from calotype.errors import InputError

from ..measure import record
from ..measure.record import ROWS_FILE, Recorded, Row, Run, read
from .page import facts
from .table_columns import COLUMNS, Column, by_case, rate, size, why

LIMIT_BYTES = 2 * 2**20  # of each file: a repository keeps what it once had
LIMIT_LINES = 200  # of RESULTS.md: the newest runs that fit have a table, older runs have a line
RESULTS_FILE = "RESULTS.md"  # beside the folder of results
AGAIN = "calotype bench results"
SHOWN = ("contender", "median", "spread", "rounds", "ratio", "interval", "verdict", "psnr", "memory")
FAILED = {"wrong": "wrong images", "cannot": "cannot run", "failed": "failed", "ok": "no speed"}
OPENING = f"""# Benchmark results

`{AGAIN}` generates this page from `results/*/run.jsonl`; do not edit it. The newest runs come first. A row is "ahead"
or "behind" only if the complete 95 % interval of its ratios is. A contender whose images are wrong has no speed. The
`sd15` and `sd-turbo` models have full-size networks with random weights.

`calotype bench page benchmarks/results/NAME -o report.html` makes the page of a run, with plots and all columns.

In runs before 2026-11-28, an image of any contender may have had one core less at its start, because the suite's own
threads had not stopped yet. This changes the times of the demonstration model, and not those of larger models.
"""


def result_name(run: Run) -> str:
    """Date, device and preset, as a folder's name: 2026-11-24-amd-epyc-quick. A later run of that day replaces it.

    A run that is no whole preset has a digest of its command there.
    """
    device = _plain(run.device.replace("(R)", "").replace("(TM)", ""))[:40].strip("-")
    words = shlex.split(run.command)
    whole = words[-2:] == ["--preset", run.preset] and sum(word.startswith("--") for word in words) == 1
    digest = "" if whole else hashlib.sha256(run.command.encode()).hexdigest()[:6]
    return "-".join(part for part in (run.date[:10], device, _plain(run.preset), digest) if part)


def _plain(words: str) -> str:
    """Lower case, digits and single hyphens."""
    kept = "".join(c if c.isascii() and c.isalnum() else " " for c in words.lower())
    return "-".join(kept.split())


def keep(recorded: Recorded, into: Path) -> Path:
    """Write the run into `into`/NAME, in place of one of the same name; all or nothing.

    Raises:
        InputError: the file is larger than LIMIT_BYTES.
    """
    into.mkdir(parents=True, exist_ok=True)
    folder = into / result_name(recorded.run)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as made:
        fresh = Path(made) / "result"
        amount = record.write(recorded, fresh).stat().st_size
        if amount > LIMIT_BYTES:
            raise InputError(
                f"cannot keep {folder.name}: its {ROWS_FILE} is {size(amount)}, and the limit of a committed file is "
                f"{size(LIMIT_BYTES)}. Keep a run of fewer cases or rounds."
            )
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def write(folder: Path) -> Path:
    """RESULTS.md beside `folder`, made anew."""
    path = folder.parent / RESULTS_FILE
    path.write_text(generate(folder), encoding="utf-8")
    return path


def check(folder: Path) -> bool:
    """Is RESULTS.md what the files say?"""
    path = folder.parent / RESULTS_FILE
    return path.is_file() and path.read_text(encoding="utf-8") == generate(folder)


def generate(folder: Path) -> str:
    """The text of RESULTS.md."""
    found = [(file.parent, read(file)) for file in sorted(folder.glob(f"*/{ROWS_FILE}"))]
    found.sort(key=lambda pair: (pair[1].run.date, pair[0].name), reverse=True)
    devices = list(dict.fromkeys(recorded.run.device for _, recorded in found))  # that of the newest run first
    spent = len(OPENING.splitlines()) + sum(len(_machine(device, found)) for device in devices) + 4 * len(devices)
    tables: dict[Path, list[str]] = {}
    for place, recorded in found:
        tables[place] = _run(place, recorded)
        spent += len(tables[place])
        if spent + len(found) - len(tables) > LIMIT_LINES:
            del tables[place]
            break
    lines = [OPENING]
    for device in devices:
        lines += _machine(device, found)
        of_device = [(place, recorded) for place, recorded in found if recorded.run.device == device]
        lines += [line for place, _ in of_device for line in tables.get(place, ())]
        older = [_older(place, recorded) for place, recorded in of_device if place not in tables]
        lines += ["### Older runs", "", *older, ""] if older else []
    return "\n".join(lines)


def _machine(device: str, found: Sequence[tuple[Path, Recorded]]) -> list[str]:
    """The device of the runs, as its newest run describes it."""
    run = next(recorded.run for _, recorded in found if recorded.run.device == device)
    told = {name: value for name, value in facts(run).items() if name not in ("device", "load average", "mhz")}
    peaks = [f"{n} {rate(peak, 'B' if n == 'copy' else 'FLOP')}" for n, peak in run.peaks.items() if peak]
    lines = [f"## {_safe(device)}", "", f"Machine: {_safe(', '.join(f'{n} {v}' for n, v in told.items()))}."]
    lines += [f"Measured peaks: {_safe(', '.join(peaks))}."] if peaks else []
    lines += [f"With {_safe(', '.join(f'{n} {v}' for n, v in run.versions.items()))}."] if run.versions else []
    return [*lines, ""]


def _run(place: Path, recorded: Recorded) -> list[str]:
    """One run: where it came from, and a table for each case."""
    lines = []
    for title, rows in by_case(recorded):
        columns = [COLUMNS[key] for key in SHOWN if any(_cell(COLUMNS[key], row) for row in rows)]
        lines += [f"### {_safe(recorded.run.date[:10])}: {_safe(title)}", "", _source(place, recorded.run), ""]
        lines += [_line([column.head for column in columns])]
        lines += [_line(["---" if column.words else "---:" for column in columns])]
        lines += [_line([_cell(column, row) for column in columns]) for row in rows]
        lines += [""]
    return lines


def _cell(column: Column, row: Row) -> str:
    if column.key == "verdict" and row.speed is None:
        return _safe(textwrap.shorten(f"{FAILED[row.status]}: {why(row)}", 90, placeholder=" ..."))
    return _safe(column.cell(row))


def _source(place: Path, run: Run) -> str:
    commit = f", commit {_safe(run.commit[:12])}" if run.commit else ""
    link = f"[{ROWS_FILE}]({place.parent.name}/{place.name}/{ROWS_FILE})"
    notes = "".join(f". Note: {_safe(note)}" for note in run.notes)
    return f"`{' '.join(run.command.split())}`, {run.seconds:.0f} s{commit}, {link}{notes}"


def _older(place: Path, recorded: Recorded) -> str:
    titles = "; ".join(title for title, _ in by_case(recorded))
    return f"- {recorded.run.date[:10]}: {_safe(titles)}. {_source(place, recorded.run)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(words: str) -> str:
    """One line of text that Markdown leaves as it is."""
    flat = " ".join(words.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)
