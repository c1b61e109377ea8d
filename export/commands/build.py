"""`calotype build`: the options are the fields of `BuildSpec`, read from it; nothing is said twice.

Shows progress as bars on a terminal, lines in a pipe, or JSON lines; Ctrl-C and a polite kill leave nothing behind.
"""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ..builder.spec import BuildSpec, flag_of, read_config, spec_from
from ..steps.progress import Show, bars, json_lines, plain_lines


def build_command(app: typer.Typer) -> None:
    """Add `build` to the command line."""
    _build.__signature__ = inspect.Signature([*_parameters()])  # type: ignore[attr-defined]
    app.command(name="build", help="Make a plan: trace a model, lower it, prove it, and leave it in a folder.")(_build)


def _parameters() -> Iterator[inspect.Parameter]:
    for f in fields(BuildSpec):
        yield _parameter(f)
    config = Annotated[Path | None, typer.Option("--config", help="A TOML file with any of these; options go before.")]
    as_json = Annotated[bool, typer.Option("--json-progress", help="One JSON object a line on stdout, for machines.")]
    for name, kind, default in (("config", config, None), ("json_progress", as_json, False)):
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _parameter(f: Field[Any]) -> inspect.Parameter:
    told = f.metadata["help"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    if f.name == "model":
        kind: Any = Annotated[str | None, typer.Argument(help=told, metavar="MODEL", show_default=False)]
        return inspect.Parameter(f.name, keyword, default=None, annotation=kind)
    if isinstance(f.default, bool):
        kind = Annotated[bool, typer.Option(flag_of(f.name), help=told)]
        return inspect.Parameter(f.name, keyword, default=False, annotation=kind)
    many = isinstance(f.default, tuple)
    default = "" if f.default in (None, (), MISSING) else f"  [default: {_words(f.default)}]"
    flags = [flag_of(f.name), *([f.metadata["short"]] if f.metadata["short"] else [])]
    option = typer.Option(*flags, help=told + default, show_default=False)
    kind = Annotated[list[str] | None, option] if many else Annotated[str | None, option]
    return inspect.Parameter(f.name, keyword, default=None, annotation=kind)


def _words(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _build(**said: Any) -> None:
    config, as_json = said.pop("config"), said.pop("json_progress")
    given = {name: value for name, value in said.items() if value not in (None, False, [])}
    spec = spec_from({**(read_config(config) if config else {}), **given})
    from ..builder.build import build

    with _polite():
        built = build(spec, _show(as_json))
    _tell(spec, built.plan.build, built.fresh, as_json)


def _show(as_json: bool) -> Callable[[], AbstractContextManager[Show]]:
    if as_json:
        return lambda: _always(json_lines)
    return bars if sys.stderr is not None and sys.stderr.isatty() else plain_lines


@contextmanager
def _always(show: Show) -> Iterator[Show]:
    yield show


@contextmanager
def _polite() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind the work, so that half-made folders are removed; then one line and the usual code."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo("calotype: stopped; the plan was not made, and nothing half-made was left.", err=True)
        raise typer.Exit(143 if stopped.args == ("SIGTERM",) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(spec: BuildSpec, told: Mapping[str, Any], fresh: bool, as_json: bool) -> None:
    proof = told["proof"]
    if as_json:
        print(
            json.dumps({"event": "built" if fresh else "there", "plan": str(spec.output), "proof": proof}), flush=True
        )
        return
    if not fresh:
        typer.echo(f"{spec.output} is there already, made from the same model by the same tools: nothing to do.")
        return
    for row in told["table"]:
        if row["chosen"]:
            kept = f", {row['kept']} of {row['groups']} groups left in float32" if row["kept"] else ""
            typer.echo(f"{row['component']}: {row['precision']}, {row['speed']:.2f} times as fast{kept}")
    if told["table"] and not any(row["chosen"] for row in told["table"]):
        typer.echo(
            f"calotype: nothing tried was inside the gate and faster, so the plan computes in float32 "
            f"(calotype inspect {spec.output} shows what was tried).",
            err=True,
        )
    typer.echo(f"{spec.output}  {proof['psnr']:.1f} dB from float32 eager over {proof['pictures']} pictures")
