"""Runs that are committed: results/NAME/run.jsonl with its page, and RESULTS.md, made of them and nothing else."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calotype.benchmarks import record
from calotype.benchmarks.columns import by_case, filled, rate, size, why
from calotype.benchmarks.page import PAGE_FILE, facts, page
from calotype.benchmarks.record import ROWS_FILE, Recorded, Row, Run, read
from calotype.errors import InputError

LIMIT_BYTES = 2 * 2**20  # of each file: a repository keeps what it once had
RESULTS_FILE = "RESULTS.md"  # beside the folder of results
AGAIN = "calotype bench results"
SHOWN = (
    *("contender", "median", "spread", "rounds", "images", "ratio", "interval", "verdict", "alike"),
    *("psnr", "ssim", "judge", "memory", "device", "first", "load", "build", "utilisation"),
)
OPENING = f"""# Benchmark results

Made by `{AGAIN}` of the runs in `results/`; do not edit. Newest first for each device. The page of a
run has its plots, its pictures, and how to read it all. "Ahead" and "behind" are said only when the whole 95 % interval
is; a contender whose pictures are wrong has no speed.

Runs before 2026-11-28 waited too little for the suite's own threads to stop: there a picture, whoever painted it, may
have one core less at its start, which is much of the demonstration model's times and nothing of the others'.
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
    """Puts the run and its page into `into`/NAME, in place of one of the same name; all or nothing.

    Raises `InputError` where a file is larger than LIMIT_BYTES even with one picture of each contender.
    """
    into.mkdir(parents=True, exist_ok=True)
    folder = into / result_name(recorded.run)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as made:
        fresh = Path(made) / "result"
        record.write(recorded, fresh)
        (fresh / PAGE_FILE).write_text(_small_page(recorded), encoding="utf-8")
        for file in (fresh / ROWS_FILE, fresh / PAGE_FILE):
            if file.stat().st_size > LIMIT_BYTES:
                told = (
                    f"{file.name} of {folder.name} is {size(file.stat().st_size)}, and {size(LIMIT_BYTES)} is the limit"
                )
                raise InputError(f"{told} of what is committed; keep a run of fewer cases or rounds.")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def _small_page(recorded: Recorded) -> str:
    """As many pictures as fit, at least one of each contender."""
    text = page(recorded)
    return text if len(text.encode()) <= LIMIT_BYTES else page(recorded, pictures=1)


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
    lines = [OPENING]
    for device in dict.fromkeys(recorded.run.device for _, recorded in found):  # that of the newest run first
        lines.append(f"## {_safe(device)}\n")
        for place, recorded in found:
            if recorded.run.device == device:
                lines += _run(place, recorded)
    return "\n".join(lines)


def _run(place: Path, recorded: Recorded) -> list[str]:
    """One run: what, where, with what, and a table a case."""
    run = recorded.run
    pages = f" · [page]({place.parent.name}/{place.name}/{PAGE_FILE})" if (place / PAGE_FILE).is_file() else ""
    commit = f", commit {_safe(run.commit[:12])}" if run.commit else ""
    peaks = [f"{n} {rate(peak, 'B' if n == 'copy' else 'FLOP')}" for n, peak in run.peaks.items() if peak]
    lines = [
        f"### {_safe(run.date[:10])}, {_safe(run.preset)}\n",
        f"calotype {_safe(run.version)}{commit} · {run.seconds:.0f} s{pages}\n",
        f"    {' '.join(run.command.split())}\n",
    ]
    lines += [f"Machine: {_safe(', '.join(f'{n} {v}' for n, v in facts(run).items() if n != 'device'))}.\n"]
    lines += [f"Measured peaks: {_safe(', '.join(peaks))}.\n"] if peaks else []
    lines += [f"With {_safe(', '.join(f'{n} {v}' for n, v in run.versions.items()))}.\n"] if run.versions else []
    lines += [f"Note: {_safe(note)}\n" for note in run.notes]
    for title, rows in by_case(recorded):
        lines += [f"**{_safe(title)}**\n", *_table(rows)]
    return lines


def _table(rows: tuple[Row, ...]) -> list[str]:
    timed = tuple(row for row in rows if row.speed is not None)
    lines = []
    if timed:
        columns = filled(timed, SHOWN)
        lines += [_line([column.head for column in columns])]
        lines += [_line(["---" if column.words else "---:" for column in columns])]
        lines += [_line([_safe(column.cell(row)) for column in columns]) for row in timed]
        lines += [""]
    for row in rows:
        if row.speed is None:
            status = "pictures wrong" if row.status == "wrong" else "no speed" if row.status == "ok" else row.status
            lines.append(f"- {_safe(row.contender)}, {status}: {_safe(why(row))}")
    disturbed = [f"{_safe(row.contender)} ({row.disturbed_rounds})" for row in timed if row.disturbed_rounds]
    if disturbed:
        lines.append(f"- rounds in which something else kept the machine busy: {', '.join(disturbed)}")
    lines += [f"- {_safe(row.contender)}: {_safe(note)}" for row in rows for note in row.notes]
    return [*lines, ""] if lines[-1] else lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(words: str) -> str:
    """One line of text that Markdown leaves as it is."""
    flat = " ".join(words.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)
