"""Tables of a run for the terminal, one for each case. A narrow terminal gets two lines for each row, a wide one gets
one.

Output to a pipe is not wrapped: a row is one line, for grep and for files. This module does not measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..measure.record import ResultRow, Run, RunRecord
from .table_columns import COLUMNS, by_case, filled, rate, why

WIDE = 170  # columns of a terminal in which a row fits on one line
COLORS = {"ahead": "green", "behind": "red", "unknown": "yellow", "wrong": "red", "failed": "red", "cannot": "yellow"}
LINE = (
    *("contender", "precision", "median", "spread", "rounds", "disturbed", "images", "its", "ratio", "interval"),
    *("verdict", "alike", "psnr", "ssim", "judge", "memory", "device", "first", "load", "build", "utilisation"),
)
# Narrow terminals: the two lines of each column. The name ends with the precision.
STACKED = (
    (("contender",), ("disturbed",)),
    (("median", "rounds"), ("spread",)),
    (("images",), ("its",)),
    (("ratio", "verdict"), ("interval", "alike")),
    (("psnr",), ("ssim", "judge")),
    (("memory",), ("utilisation",)),
    (("device",), ()),
    (("first", "load"), ("build",)),
)
HEADS = {"ratio, verdict": "vs. base", "ssim, judge": "SSIM judge", "first, load": "first, load", "disturbed": ""}


def show(recorded: RunRecord, console: Console) -> None:
    """Print the run: the machine, a table for each case, and below it who has no speed and why."""
    with unwrapped(console):
        for line in heading(recorded.run):
            console.print(Text(line), style="dim", soft_wrap=not console.is_terminal)
        for title, rows in by_case(recorded):
            console.print()
            console.print(Text(title, style="bold"), soft_wrap=not console.is_terminal)
            timed = tuple(row for row in rows if row.speed is not None)
            if timed:
                console.print(case_table(timed, console.width))
            for words in _beneath(rows):
                console.print(Padding(words, (0, 0, 0, 2), expand=False))


@contextmanager
def unwrapped(console: Console) -> Iterator[None]:
    """Widen a console without a terminal, for which rich assumes 80 columns."""
    width = console.width
    if not console.is_terminal:
        console.width = max(width, 220)
    try:
        yield
    finally:
        if not console.is_terminal:
            console.width = width


def heading(run: Run) -> list[str]:
    """Return the preset, the machine, and the peaks that utilization refers to."""
    peaks = ", ".join(f"{n} {rate(p, 'B' if n == 'copy' else 'FLOP')}" for n, p in run.peaks.items() if p)
    commit = f" ({run.commit[:12].rstrip('+')}{'+' if run.commit.endswith('+') else ''})" if run.commit else ""
    lines = [
        f"{run.preset}, {run.date[:16].replace('T', ' ')} UTC, calotype {run.version}{commit}, {run.seconds:.0f} s"
    ]
    lines.append(f"{run.device}, {run.threads} threads" + (f"; measured peaks: {peaks}" if peaks else ""))
    return [*lines, f"command: {run.command}", *(f"note: {note}" for note in run.notes)]


def case_table(rows: tuple[ResultRow, ...], width: int) -> Table:
    """Return the table of one case for this width."""
    return _one_line(rows) if width >= WIDE else _two_lines(rows)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)


def _one_line(rows: tuple[ResultRow, ...]) -> Table:
    table, columns = _table(), filled(rows, LINE)
    for column in columns:
        left = column.key in ("contender", "precision", "verdict")
        table.add_column(column.head, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_colored(column.cell(row)) for column in columns))
    return table


def _two_lines(rows: tuple[ResultRow, ...]) -> Table:
    table, there = _table(), {column.key for column in filled(rows, LINE)}
    stacks = [[tuple(k for k in line if k in there) for line in stack] for stack in STACKED]
    stacks = [stack for stack in stacks if any(stack)]
    for stack in stacks:
        left = "contender" in stack[0]
        # Only the name may wrap: a number that wraps is not readable.
        table.add_column(_heads(stack), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        table.add_row(*(_stack(row, stack) for stack in stacks))
    return table


def _heads(stack: list[tuple[str, ...]]) -> str:
    usual = [", ".join(COLUMNS[key].head for key in line) for line in stack]
    return "\n".join(HEADS.get(", ".join(line), head) for line, head in zip(stack, usual, strict=True))


def _stack(row: ResultRow, stack: list[tuple[str, ...]]) -> Text:
    marks = {"rounds": "n {}", "disturbed": "  ! {} rounds disturbed"}
    lines = []
    for keys in stack:
        cells = {key: COLUMNS[key].cell(row) for key in keys}
        lines.append(" ".join(marks.get(key, "{}").format(cell) for key, cell in cells.items() if cell))
    text = Text("\n".join(lines))
    text.highlight_words(["ahead"], COLORS["ahead"])
    text.highlight_words(["behind"], COLORS["behind"])
    return text


def _colored(cell: str) -> Text:
    return Text(cell, style=COLORS.get(cell, ""))


def _beneath(rows: tuple[ResultRow, ...]) -> Iterator[Text]:
    """Yield the rows without a speed, the disturbed rows, and the notes of the contenders."""
    for row in rows:
        if row.speed is None:
            status = "no speed" if row.status == "ok" else row.status
            yield Text.assemble((f"{status}: ", COLORS.get(row.status, "")), (row.contender, "bold"), f"  {why(row)}")
    disturbed = [row.contender for row in rows if row.disturbed_rounds]
    if disturbed:
        yield Text("disturbed: rounds in which other work kept the machine busy; they count nevertheless.")
    for row in rows:
        for note in row.notes:
            yield Text(f"note: {row.contender}: {note}", style="dim")
