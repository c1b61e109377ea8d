"""`calotype build`: the options are generated from the fields of `BuildSpec`.

Show progress as bars on a terminal, as lines in a pipe, or as JSON lines. Ctrl-C and SIGTERM leave no files behind.
"""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ..builder.spec import BuildSpec, flag_of, read_config, spec_from
from ..steps.progress import Bars, JsonLines, PlainLines


def build_command(app: typer.Typer) -> None:
    """Add the command `build` to `app`."""
    _build.__signature__ = inspect.Signature([*_parameters()])  # type: ignore[attr-defined]
    help_text = "Build a plan: trace a model, lower its precision, check it, and write a folder."
    app.command(name="build", help=help_text)(_build)


def _parameters() -> Iterator[inspect.Parameter]:
    for f in fields(BuildSpec):
        yield _parameter(f)
    config = typer.Option("--config", help="A TOML file of options; the command line wins.")
    as_json = typer.Option("--json-progress", help="Print one JSON object per line on stdout.")
    yield _keyword("config", Annotated[Path | None, config], None)
    yield _keyword("json_progress", Annotated[bool, as_json], False)


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _parameter(f: Field[Any]) -> inspect.Parameter:
    help_text = f.metadata["help"]
    if f.name == "model":
        return _keyword(
            f.name, Annotated[str | None, typer.Argument(help=help_text, metavar="MODEL", show_default=False)], None
        )
    if isinstance(f.default, bool):
        return _keyword(f.name, Annotated[bool, typer.Option(flag_of(f.name), help=help_text)], False)
    shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    default = "" if f.default in (None, (), MISSING) else f"  [default: {shown}]"
    flags = [flag_of(f.name), *([f.metadata["short"]] if f.metadata["short"] else [])]
    option = typer.Option(*flags, help=help_text + default, show_default=False)
    kind = list[str] | None if isinstance(f.default, tuple) else str | None
    return _keyword(f.name, Annotated[kind, option], None)


def _build(**options: Any) -> None:
    config, as_json = options.pop("config"), options.pop("json_progress")
    explicit = {name: value for name, value in options.items() if value not in (None, False, [])}
    spec = spec_from({**(read_config(config) if config else {}), **explicit})
    from ..builder.build import build

    on_a_terminal = sys.stderr is not None and sys.stderr.isatty()
    with _clean_exit():
        built = build(spec, JsonLines() if as_json else Bars() if on_a_terminal else PlainLines())
    _print_result(spec, built.plan.build, built.fresh, as_json)


@contextmanager
def _clean_exit() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, unwind the build, which removes its unfinished folders; then exit with 130 or 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo("calotype: stopped; the plan was not built, and its unfinished files were removed.", err=True)
        raise typer.Exit(143 if stopped.args == ("SIGTERM",) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_result(spec: BuildSpec, record: Mapping[str, Any], fresh: bool, as_json: bool) -> None:
    proof = record["proof"]
    if as_json:
        result = {"event": "built" if fresh else "there", "plan": str(spec.output), "proof": proof}
        print(json.dumps(result), flush=True)
        return
    if not fresh:
        typer.echo(f"{spec.output} already exists and was built from the same model by the same tools: nothing to do.")
        return
    for row in record["table"]:
        if row["chosen"]:
            in_float32 = f", {row['kept']} of {row['groups']} groups left in float32" if row["kept"] else ""
            typer.echo(f"{row['component']}: {row['precision']}, {row['speed']:.2f} times as fast{in_float32}")
    if record["table"] and not any(row["chosen"] for row in record["table"]):
        typer.echo(
            "calotype: no lower precision was both faster and inside the quality gate, so the plan computes in "
            f"float32 (calotype inspect {spec.output} lists the trials).",
            err=True,
        )
    typer.echo(f"{spec.output}  {proof['psnr']:.1f} dB PSNR to float32 eager over {proof['pictures']} images")
