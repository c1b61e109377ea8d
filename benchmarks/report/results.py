"""Committed runs: results/NAME/run.jsonl, and RESULTS.md, which is generated only from these files."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
import textwrap
from pathlib import Path

from calotype.errors import InputError

from ..measure import record
from ..measure.record import ROWS_FILE, ResultRow, Run, RunRecord, read
from .columns import COLUMNS, Column, by_case, facts, peaks_of, size, why

LIMIT_BYTES = 2 * 2**20  # for each file, because a repository keeps every old version
LIMIT_LINES = 200  # of RESULTS.md: the newest runs that fit get a table, older runs a line
RESULTS_FILE = "RESULTS.md"  # next to the folder of results
SHOWN = ("contender", "median", "spread", "rounds", "ratio", "interval", "verdict", "psnr", "memory")
FAILED = {"wrong": "wrong images", "cannot": "cannot run", "failed": "failed", "ok": "no speed"}
OPENING = """# Benchmark results

`calotype bench results` generates this page from `results/*/run.jsonl`; do not edit it. The newest runs come first. A
row is "ahead" or "behind" only if the complete 95 % interval of its ratios is. A contender whose images are wrong has
no speed. The `sd15` and `sd-turbo` models have full-size networks with random weights.

`calotype bench page benchmarks/results/NAME -o report.html` makes the page of a run, with plots and all columns.

In runs before 2026-11-28, an image of any contender may have had one core less at its start, because the suite's own
threads had not stopped yet. This changes the times of the demonstration model, and not those of larger models.
Commands of these days may name parts of the openvino backend that are gone.
"""


def result_name(run: Run) -> str:
    """Return date, device and preset as a folder name: 2026-11-24-amd-epyc-quick.

    A later run of that day replaces it. A run that is not a complete preset also has a digest of its command.
    """
    device = _plain(run.device.replace("(R)", "").replace("(TM)", ""))[:40].strip("-")
    words = shlex.split(run.command)
    is_preset = words[-2:] == ["--preset", run.preset] and sum(word.startswith("--") for word in words) == 1
    digest = "" if is_preset else hashlib.sha256(run.command.encode()).hexdigest()[:6]
    return "-".join(part for part in (run.date[:10], device, _plain(run.preset), digest) if part)


def _plain(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def keep(recorded: RunRecord, into: Path) -> Path:
    """Write the run into `into`/NAME and replace a run of the same name, in one atomic step.

    Raises:
        InputError: the file is larger than LIMIT_BYTES.
    """
    into.mkdir(parents=True, exist_ok=True)
    folder = into / result_name(recorded.run)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as temporary:
        fresh = Path(temporary) / "result"
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
    """Generate RESULTS.md next to `folder`."""
    path = folder.parent / RESULTS_FILE
    path.write_text(generate(folder), encoding="utf-8")
    return path


def generate(folder: Path) -> str:
    """Return the text of RESULTS.md."""
    runs = [(file.parent, read(file)) for file in sorted(folder.glob(f"*/{ROWS_FILE}"))]
    runs.sort(key=lambda pair: (pair[1].run.date, pair[0].name), reverse=True)
    devices: dict[str, list[tuple[Path, RunRecord]]] = {}  # the device of the newest run first
    for place, recorded in runs:
        devices.setdefault(recorded.run.device, []).append((place, recorded))
    heads = {device: _machine(of_device[0][1].run) for device, of_device in devices.items()}
    # Each device may need a heading for its older runs, and each older run needs a line.
    left = LIMIT_LINES - len(OPENING.splitlines()) - sum(len(head) + 4 for head in heads.values()) - len(runs)
    tables: dict[Path, list[str]] = {}
    for place, recorded in runs:
        table = _run(place, recorded)
        left -= len(table) - 1
        if left < 0:
            break
        tables[place] = table
    lines = [OPENING]
    for device, of_device in devices.items():
        older = [_older(place, recorded) for place, recorded in of_device if place not in tables]
        lines += [*heads[device], *(line for place, _ in of_device for line in tables.get(place, ()))]
        lines += ["### Older runs", "", *older, ""] if older else []
    return "\n".join(lines)


def _machine(run: Run) -> list[str]:
    about = {name: value for name, value in facts(run).items() if name not in ("device", "load average", "mhz")}
    lines = [f"## {_safe(run.device)}", ""]
    for words, values in (("Machine:", about), ("Measured peaks:", peaks_of(run)), ("With", run.versions)):
        if values:
            lines.append(f"{words} {_safe(', '.join(f'{name} {value}' for name, value in values.items()))}.")
    return [*lines, ""]


def _run(place: Path, recorded: RunRecord) -> list[str]:
    lines = []
    for title, rows in by_case(recorded):
        columns = [COLUMNS[key] for key in SHOWN if any(_cell(COLUMNS[key], row) for row in rows)]
        rules = ["---" if column.is_text else "---:" for column in columns]
        cells = [[_cell(column, row) for column in columns] for row in rows]
        lines += [f"### {_safe(recorded.run.date[:10])}: {_safe(title)}", "", _source(place, recorded.run), ""]
        lines += [f"| {' | '.join(line)} |" for line in ([column.head for column in columns], rules, *cells)]
        lines += [""]
    return lines


def _cell(column: Column, row: ResultRow) -> str:
    if column.key == "verdict" and row.speed is None:
        return _safe(textwrap.shorten(f"{FAILED[row.status]}: {why(row)}", 90, placeholder=" ..."))
    return _safe(column.cell(row))


def _source(place: Path, run: Run) -> str:
    commit = f", commit {_safe(run.commit[:12])}" if run.commit else ""
    link = f"[{ROWS_FILE}]({place.parent.name}/{place.name}/{ROWS_FILE})"
    notes = "".join(f". Note: {_safe(note)}" for note in run.notes)
    return f"`{' '.join(run.command.split())}`, {run.seconds:.0f} s{commit}, {link}{notes}"


def _older(place: Path, recorded: RunRecord) -> str:
    titles = "; ".join(title for title, _ in by_case(recorded))
    return f"- {recorded.run.date[:10]}: {_safe(titles)}. {_source(place, recorded.run)}"


def _safe(words: str) -> str:
    """Return one line of text that Markdown does not change."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(words.split()))
