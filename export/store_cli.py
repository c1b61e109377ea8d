"""`calotype store`: what is in the store, and what leaves it. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.printable import printable

if TYPE_CHECKING:
    from calotype.export.store import Entry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See and clear what was made and kept.")

_COLUMNS = ("key", "what", "size", "made", "last used", "state")
_SHORT = 12  # digits of a key: enough to tell entries apart


@app.command("ls")
def list_entries(
    as_json: Annotated[bool, typer.Option("--json", help="Print an array of objects, with all that is known.")] = False,
) -> None:
    """List the entries, the least recently used first."""
    from calotype.export.store import entries, root

    found = entries()
    if as_json:
        typer.echo(json.dumps([_object(entry) for entry in found], indent=1))
    elif not found:
        typer.echo(f"{root()} is empty")
    elif sys.stdout.isatty():
        _print_table([_row(entry) for entry in found])
    else:
        _print_aligned([_row(entry) for entry in found])


@app.command("rm")
def remove_entries(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, or the first digits of them.")],
) -> None:
    """Remove entries, unless they are in use."""
    from calotype.export.sweep import remove

    _say_removed(remove(keys))


@app.command("gc")
def collect(
    max_size: Annotated[str, typer.Option(help="What may stay: 20GB, 500MB, 1.5GiB.", show_default=False)],
) -> None:
    """Remove the least recently used entries until the rest fits, and what killed processes left."""
    from calotype.export.sizes import amount, bytes_of
    from calotype.export.sweep import gc

    swept = gc(bytes_of(max_size))
    _say_removed(swept.removed)
    typer.echo(f"{amount(swept.kept_bytes)} are kept")
    if swept.busy:
        told = ", ".join(entry.key[:_SHORT] for entry in swept.busy)
        typer.echo(printable(f"calotype: in use, so not removed: {told}"), err=True)


def _object(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "label": dict(entry.label),
        "size_bytes": entry.size_bytes,
        "made": _time(entry.made).isoformat(),
        "used": _time(entry.used).isoformat(),
        "fault": entry.fault,
        "folder": str(entry.folder),
    }


def _row(entry: Entry) -> tuple[str, ...]:
    from calotype.export.sizes import amount

    made, used = (_time(at).astimezone().strftime("%Y-%m-%d %H:%M") for at in (entry.made, entry.used))
    what = " ".join(" ".join(entry.label.values()).split())
    state = "damaged" if entry.fault else "whole"
    return printable(entry.key[:_SHORT]), printable(what) or "-", amount(entry.size_bytes), made, used, state


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row), style="red" if row[-1] == "damaged" else None)
    Console().print(table)


def _print_aligned(rows: list[tuple[str, ...]]) -> None:
    lines = [_COLUMNS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _say_removed(removed: list[Entry] | tuple[Entry, ...]) -> None:
    from calotype.export.sizes import amount
    from calotype.export.store import title

    for entry in removed:
        line = f"removed {entry.key[:_SHORT]}  {title(entry.key, entry.label)}, {amount(entry.size_bytes)}"
        typer.echo(printable(line))
