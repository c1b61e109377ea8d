"""The command line of the engine. A command does its heavy imports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import CalotypeError, InputError
from .errors.printable import printable
from .generate import add_generate
from .system.version import __version__
from .upscaling.command import upscale

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Calotype: a compiled inference engine for Stable Diffusion.",
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Calotype: a compiled inference engine for Stable Diffusion."""


add_generate(app)


@app.command()
def inspect(
    plan: Annotated[Path, typer.Argument(help="A plan folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all data as one JSON object.")] = False,
) -> None:
    """Print what a plan contains: components, tensors, sizes, precision, checks, and the trials of its build."""
    from .plan.inspection import describe, format_plan
    from .plan.plan import is_plan, read_plan

    if not is_plan(plan):
        message = f"cannot inspect {plan}: it is not a plan. Build one with: calotype build MODEL -o {plan}"
        raise InputError(message, argument="plan", got=str(plan))
    opened = read_plan(plan.expanduser())
    typer.echo(json.dumps(describe(opened), indent=1) if as_json else format_plan(opened))


app.command("upscale")(upscale)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program or a bug report.")] = False,
) -> None:
    """Print what this machine can run, what it cannot run and why, and the command that fixes it."""
    from .doctor import doctor

    doctor.main(as_json=as_json)


def main() -> None:
    """Run the command line. Exit with 0, with 1 and one message on stderr, or with 2 for wrong usage."""
    try:
        app()
    except CalotypeError as error:
        typer.echo(f"calotype: {error}", err=True)
        sys.exit(1)
    except OSError as failed:  # a full disk, a path without read permission
        typer.echo(printable(f"calotype: {failed.filename or 'output'}: {failed.strerror or failed}"), err=True)
        sys.exit(1)
