"""Tables for the terminal: a run, and a comparison of two runs. A narrow terminal gets the columns in several tables.

Output to a pipe is not wrapped: a row is one line, for grep and for files. This module neither measures nor compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..measure.record import ResultRow, Run, RunRecord
from .columns import by_case, digits, filled, peaks_of, why
from .compare import Comparison, RowChange

COLORS = {"ahead": "green", "behind": "red", "unknown": "yellow", "wrong": "red", "failed": "red", "cannot": "yellow"}
COLORS |= {"slower": "red", "faster": "green"}
SHOWN = (
    *("contender", "median", "spread", "rounds", "disturbed", "images", "its", "ratio", "interval", "verdict"),
    *("alike", "psnr", "ssim", "judge", "memory", "device", "first", "load", "build", "utilization"),
)


def show(recorded: RunRecord, console: Console) -> None:
    """Print the run: the machine, a table for each case, and below it who has no speed and why."""
    _widen_pipe(console)
    for line in heading(recorded.run):
        console.print(Text(line), style="dim", soft_wrap=not console.is_terminal)
    for title, rows in by_case(recorded):
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=not console.is_terminal)
        timed = [row for row in rows if row.speed is not None]
        columns = filled(timed, SHOWN)
        cells = [[Text(cell := column.cell(row), style=COLORS.get(cell, "")) for column in columns] for row in timed]
        _print_table(console, [column.head for column in columns], cells, left=[c.is_name for c in columns])
        for words in _notes(rows):
            console.print(Padding(words, (0, 0, 0, 2), expand=False))


def heading(run: Run) -> list[str]:
    """Return the preset, the machine, and the peaks that utilization refers to."""
    peaks = ", ".join(f"{name} {peak}" for name, peak in peaks_of(run).items())
    commit = f" ({run.commit})" if run.commit else ""
    return [
        f"{run.preset}, {run.date[:16].replace('T', ' ')} UTC, calotype {run.version}{commit}, {run.seconds:.0f} s",
        f"{run.device}, {run.threads} threads" + (f"; measured peaks: {peaks}" if peaks else ""),
        f"command: {run.command}",
        *(f"note: {note}" for note in run.notes),
    ]


def _notes(rows: Sequence[ResultRow]) -> Iterator[Text]:
    """Yield the rows without a speed, the disturbed rows, and the notes of the contenders."""
    for row in rows:
        if row.speed is None:
            status = "no speed" if row.status == "ok" else row.status
            yield Text.assemble((f"{status}: ", COLORS.get(row.status, "")), (row.contender, "bold"), f"  {why(row)}")
    if any(row.disturbed_rounds for row in rows):
        yield Text("disturbed: rounds in which other work kept the machine busy; they count nevertheless.")
    for row in rows:
        for note in row.notes:
            yield Text(f"note: {row.contender}: {note}", style="dim")


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the machine, the rows of each case, the regressions, and the rows that only one run has."""
    _widen_pipe(console)
    if comparison.machine:
        console.print(Text("The machine changed between the runs:", style="bold yellow"))
        for line in comparison.machine:
            console.print(Text(f"  {line}"))
        console.print(Text("  corrected: the ratio after a correction by the fp32 peak", style="dim"))
    for case_id in dict.fromkeys(change.case_id for change in comparison.changes):
        changes = [change for change in comparison.changes if change.case_id == case_id]
        console.print(Text(f"\n{changes[0].title}", style="bold"))
        heads = ["contender", "old s", "new s", "new/old", "interval", "corrected", ""]
        _print_table(console, heads, [_change_cells(change) for change in changes], left=[True, *[False] * 5, True])
    console.print()
    worse = [change for change in comparison.changes if change.regressions]
    for change in worse:
        details = f" ({change.case_id}): {'; '.join(change.regressions)}"
        console.print(Text.assemble(("regressed: ", "bold red"), (change.contender, "bold"), details))
    if not worse:
        words = f"{len(comparison.changes)} rows compared; none regressed past {comparison.threshold:.0%}."
        console.print(Text(words, style="green"))
    for when, rows in (("old", comparison.only_old), ("new", comparison.only_new)):
        for row in rows:
            console.print(Text(f"only in the {when} run: {row}", style="dim"))


def _change_cells(change: RowChange) -> list[Text]:
    seconds = ["" if value is None else digits(value) for value in (change.old_s, change.new_s)]
    ratio, corrected = ("" if value is None else f"{value:.3f}" for value in (change.ratio, change.corrected))
    between = "" if change.low is None or change.high is None else f"{change.low:.3f}–{change.high:.3f}"
    words = [Text(change.moved or "", style=COLORS.get(change.moved or "", "dim"))] if change.moved else []
    words += [Text("regressed", style="bold red")] if change.regressions else []
    words += [Text(note, style="dim") for note in change.notes]
    return [*map(Text, (change.contender, *seconds, ratio, between, corrected)), Text(", ").join(words)]


def _print_table(
    console: Console, heads: Sequence[str], rows: Sequence[Sequence[Text]], *, left: Sequence[bool]
) -> None:
    """Print the columns that have a cell. Those that do not fit the console continue below, each time with the first.

    Cells of `left` columns stand to the left. The last column may wrap.
    """
    columns = [i for i in range(len(heads)) if any(row[i].plain for row in rows)]
    widths = {i: max(len(heads[i]), *(row[i].cell_len for row in rows)) + 2 for i in columns}
    rest = columns[1:]
    while rest:
        if len(rest) < len(columns) - 1:
            console.print()
        shown, room = columns[:1], console.width + 2 - widths[columns[0]]
        while rest and (len(shown) == 1 or widths[rest[0]] <= room):
            room -= widths[rest[0]]
            shown.append(rest.pop(0))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
        for i in shown:
            table.add_column(heads[i], justify="left" if left[i] else "right", no_wrap=bool(heads[i]), overflow="fold")
        for row in rows:
            table.add_row(*(row[i] for i in shown))
        console.print(table)


def _widen_pipe(console: Console) -> None:
    """Let rows fit on one line where rich assumes 80 columns, because there is no terminal."""
    if not console.is_terminal:
        console.width = max(console.width, 220)
