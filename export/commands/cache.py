"""`calotype cache`: list, remove and verify the entries under `CALOTYPE_HOME`. Commands import heavy modules late."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.errors import InputError
from calotype.errors.printable import printable

if TYPE_CHECKING:
    from calotype.files.cache import Entry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, verify and clear the cache.")

_COLUMNS = ("key", "area", "what", "size", "last used")
_SHORT = 12  # shown digits of a key
_PREFIXES = list(enumerate("kmgt", start=1))
_UNITS = {"b": 1} | {f"{p}b": 1000**i for i, p in _PREFIXES} | {f"{p}ib": 1024**i for i, p in _PREFIXES}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgt]?i?b)", re.ASCII | re.IGNORECASE)
_LATEST_S = 253_402_214_400.0  # the year 9999, the last of `datetime`


@app.command("ls")
def list_entries(
    as_json: Annotated[bool, typer.Option("--json", help="Print the full entries as a JSON array.")] = False,
) -> None:
    """List the entries, least recently used first."""
    from calotype.files.paths import home

    from ..store.gc import all_entries

    entries = all_entries()
    if as_json:
        typer.echo(json.dumps([_object(entry) for entry in entries], indent=1))
    elif not entries:
        typer.echo(f"{home()} is empty")
    elif sys.stdout.isatty():
        _print_table([_row(entry) for entry in entries])
    else:
        _print_aligned([_row(entry) for entry in entries])


@app.command("rm")
def remove_entries(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, or their first digits.")],
) -> None:
    """Remove entries that are not in use."""
    from ..store.gc import remove

    _print_removed(remove(keys))


@app.command("gc")
def collect(
    max_size: Annotated[str, typer.Option(help="The size to keep: 20GB, 500MB, 1.5GiB.", show_default=False)],
) -> None:
    """Remove least recently used entries until the cache fits, and leftovers of killed processes."""
    from rich.filesize import decimal

    from ..store.gc import gc

    swept = gc(bytes_of(max_size))
    _print_removed(swept.removed)
    typer.echo(f"{decimal(swept.kept_bytes)} remain in the cache")
    if swept.busy:
        names = ", ".join(f"{entry.key[:_SHORT]} ({entry.title})" for entry in swept.busy)
        typer.echo(printable(f"calotype: not removed because in use: {names}"), err=True)


@app.command("verify")
def verify_entries() -> None:
    """Check every entry against its digests. List damaged entries, and exit with 1 if there are any."""
    from calotype.files.digest import rereading

    from ..store.gc import all_entries

    entries = all_entries()
    verifiable = [entry for entry in entries if entry.area.verifiable]
    damaged = 0
    with rereading():
        for entry in verifiable:
            if (fault := entry.fault) is not None:
                damaged += 1
                typer.echo(printable(f"damaged {entry.key[:_SHORT]}  {entry.area.name}  {entry.title}: {fault}"))
    typer.echo(f"{len(verifiable)} entries read, {damaged} damaged")
    if rest := {entry.area.name for entry in entries if not entry.area.verifiable}:
        typer.echo(f"not verified, because these areas store no digests: {', '.join(sorted(rest))}")
    if damaged:
        raise typer.Exit(1)


def bytes_of(text: str) -> int:
    """Return the bytes of an amount: "20GB" is 20 * 1000**3, "20GiB" is 20 * 1024**3. Raises `InputError`."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit:
        raise InputError(
            f"{text!r} is not an amount of bytes; expected a form such as 20GB, 500MB or 1.5GiB.",
            argument="max_size",
            got=text,
            expected="a form such as 20GB, 500MB or 1.5GiB",
        )
    return int(Decimal(match[1]) * unit)


def _object(entry: Entry) -> dict[str, object]:
    return {
        "key": entry.key,
        "area": entry.area.name,
        "label": dict(entry.label),
        "size_bytes": entry.size_bytes,
        "used": _time(entry.used).isoformat(),
        "path": str(entry.path),
    }


def _row(entry: Entry) -> tuple[str, ...]:
    from rich.filesize import decimal

    used = _time(entry.used).astimezone().strftime("%Y-%m-%d %H:%M")
    return entry.key[:_SHORT], entry.area.name, printable(entry.title), decimal(entry.size_bytes), used


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LATEST_S), UTC)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _print_aligned(rows: list[tuple[str, ...]]) -> None:
    lines = [_COLUMNS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_removed(removed: Iterable[Entry]) -> None:
    from rich.filesize import decimal

    for entry in removed:
        typer.echo(printable(f"removed {entry.key[:_SHORT]}  {entry.title}, {decimal(entry.size_bytes)}"))
