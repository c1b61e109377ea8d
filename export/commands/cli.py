"""The complete command line: the runtime's commands and those of `export`. Commands import heavy modules late."""

from __future__ import annotations

from calotype.cli import app, main

from . import cache as cache_cli
from .build import build_command
from .fit import fit_command
from .warm import warm_command

__all__ = ["app", "main"]

build_command(app)
fit_command(app)
warm_command(app)
app.add_typer(cache_cli.app, name="cache")
