"""Table of a comparison for the terminal: every row, and then the regressions. This module does not compare."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .compare import Comparison, RowChange
from .table import unwrapped
from .table_columns import digits

STYLES = {"slower": "red", "faster": "green", "unknown": "yellow"}


def show(comparison: Comparison, console: Console) -> None:
    """Print the machine, the rows of each case, the regressions, and the rows that only one run has."""
    with unwrapped(console):
        if comparison.machine:
            console.print(Text("The machine changed between the runs:", style="bold yellow"))
            for line in comparison.machine:
                console.print(Text(f"  {line}"))
            console.print(Text("  corrected: the ratio after a correction by the fp32 peak", style="dim"))
        for case_id in dict.fromkeys(change.case_id for change in comparison.changes):
            changes = [change for change in comparison.changes if change.case_id == case_id]
            console.print()
            console.print(Text(changes[0].title, style="bold"))
            console.print(_table(changes))
        console.print()
        for words in _worse(comparison):
            console.print(words)


def _table(changes: list[RowChange]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    corrected = any(change.corrected is not None for change in changes)
    table.add_column("contender", no_wrap=True)
    for head in ("old s", "new s", "new/old", "interval", *(["corrected"] if corrected else [])):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    for change in changes:
        between = "" if change.low is None or change.high is None else f"{change.low:.3f}–{change.high:.3f}"
        cells = [_number(change.old_s), _number(change.new_s), _ratio(change.ratio), between]
        cells += [_ratio(change.corrected)] if corrected else []
        table.add_row(change.contender, *cells, _words(change))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else digits(value)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _words(change: RowChange) -> Text:
    text = Text(change.moved or "", style=STYLES.get(change.moved or "", "dim"))
    if change.regressions:
        text.append(f"{', ' if text else ''}regressed", style="bold red")
    for note in change.notes:
        text.append(f"{', ' if text else ''}{note}", style="dim")
    return text


def _worse(comparison: Comparison) -> list[Text]:
    lines = [_regressed(change) for change in comparison.changes if change.regressions]
    if not lines:
        compared = len(comparison.changes)
        lines = [Text(f"{compared} rows compared; none regressed past {comparison.threshold:.0%}.", style="green")]
    lines += [Text(f"only in the old run: {row}", style="dim") for row in comparison.only_old]
    return lines + [Text(f"only in the new run: {row}", style="dim") for row in comparison.only_new]


def _regressed(change: RowChange) -> Text:
    details = f" ({change.case_id}): {'; '.join(change.regressions)}"
    return Text.assemble(("regressed: ", "bold red"), (change.contender, "bold"), details)
