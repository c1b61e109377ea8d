"""Write the parts of the reference that the code knows: the commands of the app, and the arguments of a call.

MkDocs calls `on_page_markdown` for every page, which replaces COMMANDS, ARGUMENTS and ALIASES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

COMMANDS, ARGUMENTS, ALIASES = "<!-- commands -->", "<!-- arguments -->", "<!-- aliases -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its commands or arguments filled in."""
    if COMMANDS in markdown:
        return markdown.replace(COMMANDS, reference())
    if ALIASES in markdown:
        return markdown.replace(ALIASES, aliases())
    return markdown.replace(ARGUMENTS, arguments()) if ARGUMENTS in markdown else markdown


def arguments() -> str:
    """Describe every argument of a call in Markdown, from the table in `Request`."""
    from calotype.request.arguments.argument import table
    from calotype.request.request import Request

    rows = ["| Argument | Default | Description |", "| --- | --- | --- |"]
    for name, default, about in table(Request):
        shown = about.shown_default or f"`{default!r}`"
        rows.append(f"| `{name}` | {shown} | {_plain(f'{about.help} {about.details}')} |")
    return "\n".join(rows)


def aliases() -> str:
    """Return diffusers' names of arguments and ours in Markdown, from their table."""
    from calotype.request.diffusers_names import ALIASES as TABLE

    rows = ["| Diffusers | Calotype |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{theirs}` | `{alias.name}` |" for theirs, alias in TABLE.items())])


def reference() -> str:
    """Describe every command in Markdown, in the order of the app."""
    from calotype.benchmarks import cli  # the complete app: the suite adds its commands

    root = typer.main.get_command(cli.cli.app)
    return "\n\n".join(_section(name, command) for name, command in commands(root, "calotype"))


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each command below `group` with its full name, and a group that runs without a subcommand as well."""
    for word, command in group.commands.items():
        full = f"{name} {word}"
        if not hasattr(command, "commands"):
            yield full, command
            continue
        if command.invoke_without_command:
            yield full, command
        yield from commands(command, full)


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    records = [r for r in (p.get_help_record(context) for p in command.params) if r is not None]
    parts = [f"## {name}", _plain(command.help or ""), f"```text\n{usage}\n```"]
    if records:
        rows = [f"| `{words}` | {_plain(text)} |" for words, text in records if not words.startswith("--help")]
        parts.append("\n".join(["| Argument or option | Description |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def _plain(words: str) -> str:
    """Return one line of text that Markdown does not change, with its code spans."""
    escapes = {"<": "&lt;", ">": "&gt;", **{mark: f"\\{mark}" for mark in "|*_[]"}}
    return re.sub(r"`[^`|]*`|[|<>*_\[\]]", lambda match: escapes.get(match[0], match[0]), " ".join(words.split()))
