"""`calotype fit`: fit samplers with fewer network calls to a model. Heavy modules are imported late."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.errors import InputError
from calotype.errors.printable import printable

if TYPE_CHECKING:
    from calotype.sampling.fitted import FittedSampler


def fit_command(app: typer.Typer) -> None:
    """Add the command `fit` to `app`."""
    app.command(name="fit")(_fit)


def _fit(
    model: Annotated[str, typer.Argument(help="demo, a plan, a model folder, a checkpoint, or a hub id.")],
    scheduler: Annotated[
        str | None, typer.Option(help="The scheduler to imitate.  [default: the model's]", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="The steps of the schedule to imitate.")] = 20,
    calls: Annotated[str, typer.Option(help="Network calls of each fitted sampler: 10, or 8:10:12.")] = "10",
    guidance: Annotated[str, typer.Option(help="The guidance scales that the fit holds for: LOW:HIGH or one.")] = "2:9",
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt per line; every other one is held out.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="Prompts that the rows are fitted to.")] = 48,
    held_out: Annotated[int, typer.Option(help="Prompts that measure the result.")] = 16,
    height: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]", show_default=False)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]", show_default=False)] = None,
    images: Annotated[
        bool | None,
        typer.Option(help="Also fit image-to-image.  [default: below 256 px]", show_default=False),
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Keep a fit that was not measured: for timings with random weights.")
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, or names by preference: onnxruntime,eager.")] = "auto",
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA to fit with, as FILE or FILE:0.8; repeatable.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read hub ids from the cache only.")] = False,
) -> None:
    """Fit samplers with fewer network calls to a model: `calls=10` then imitates 20 steps in 10 calls."""
    options: dict[str, Any] = {
        **{"scheduler": scheduler, "steps": steps, "height": height, "width": width, "prompts": prompts},
        **{"calibration": calibration, "held_out": held_out, "images": images, "unchecked": unchecked},
        "guidance": tuple(_numbers("guidance", guidance, float) * (1 if ":" in guidance else 2)),
    }
    counts = tuple(_numbers("calls", calls, int))
    from ..fit.fit import fit_samplers
    from ..fit.spec import FitSpec
    from ..steps.progress import Bars, PlainLines

    spec = FitSpec(calls=counts, **options)
    from calotype.loading import load

    names = [name.strip() for name in backend.split(",") if name.strip()]
    pipe = load(model, backend=names[0] if len(names) == 1 else names, lora=lora or (), offline=offline)
    on_a_terminal = sys.stderr is not None and sys.stderr.isatty()
    for fitted in fit_samplers(pipe.plan, pipe._generator, spec, Bars() if on_a_terminal else PlainLines()):
        _print(fitted)


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(":")]
    except ValueError:
        expected = "numbers, separated by colons"
        raise InputError(f"--{name}: got {text!r}; expected {expected}.", argument=name, got=text) from None


def _print(fitted: FittedSampler) -> None:
    settings, figures = fitted.settings, fitted.figures
    head = f"{settings['scheduler']}, {settings['steps']} steps in {settings['calls']} calls"
    if "rivals" not in figures:
        typer.echo(printable(f"{head}: not measured (--unchecked)"))
        return
    typer.echo(printable(f"{head}: PSNR over {figures['prompts']} held-out images, guidance {figures['guidance']:g}"))
    rows = {"fitted": figures["fitted"], **figures["rivals"]}
    width = max(map(len, rows))
    for name, each in sorted(rows.items(), key=lambda row: -row[1]["p10"]):
        numbers = ", ".join(f"{word} {each[word]:5.1f} dB" for word in ("median", "p10", "worst"))
        typer.echo(printable(f"  {name:<{width}}  {numbers}"))
