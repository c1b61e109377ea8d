"""`calotype serve`: one process, which loads the models, warms them up, serves, and drains on SIGTERM."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError
from .config import ServeConfig, help_of_fields, models_from, read_config, types_of_fields

_NAMES = {"models": "--model", "allowed_hosts": "--allowed-host", "cors_origins": "--cors-origin"}
_NEEDED = ("prometheus_client", "python_multipart", "starlette", "uvicorn")


def add_serve(app: typer.Typer) -> None:
    """Add the command to `app`. Its options are the fields of `ServeConfig`."""
    fixed = dict(inspect.signature(_serve, eval_str=True).parameters)
    del fixed["options"]
    _serve.__signature__ = inspect.Signature([*fixed.values(), *_options()])  # type: ignore[attr-defined]
    app.command("serve")(_serve)


def _options() -> Iterator[inspect.Parameter]:
    texts, types = help_of_fields(), types_of_fields()
    own = [name for name in types if name in ServeConfig.__annotations__]  # what is run comes before its limits
    for name in dict.fromkeys([*own, *types]):
        kind = types[name]
        option = list[str] if kind in (tuple, dict) else kind
        words = _NAMES.get(name, f"--{name.replace('_', '-')}")
        text = "NAME=MODEL, or MODEL; repeatable.  [default: demo]" if name == "models" else texts.get(name, "")
        hint: Any = Annotated[option | None, typer.Option(words, help=text, show_default=False)]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with the other options, named with _ for -; options win.", show_default=False),
    ] = None,
    new_key: Annotated[
        str | None, typer.Option(help="Print a new API key and its table for a key file, and exit.", show_default=False)
    ] = None,
    **options: Any,
) -> None:
    """Serve images over HTTP: OpenAI's API, AUTOMATIC1111's API, a job API, and a web page."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"calotype serve needs {', '.join(missing)}. Install them: pip install 'calotype[serve]'")
    if new_key is not None:
        _print_key(new_key)
        return
    passed = {name: value for name, value in options.items() if value not in (None, [])}
    if "models" in passed:
        passed["models"] = models_from(passed["models"])
    settings = read_config(config, passed)
    if settings.ray:
        if importlib.util.find_spec("ray") is None:
            raise InputError("calotype serve --ray needs Ray. Install it: pip install 'calotype[serve,ray]'")
        from ..ray import run
    else:
        from .server import run
    run(settings)


def _print_key(name: str) -> None:
    from ..web.service.keys import new_key

    key, table = new_key(name)
    typer.echo(f"# The key, which is shown once: {key}\n# Its table for the key file:\n{table}", nl=False)
