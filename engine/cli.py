"""The command line: a thin projection of `Request`, `load` and the doctor. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CalotypeError, InputError
from .errors.printable import printable
from .files.known_models import remember_model
from .report.like import CALLED, Like, read_like
from .system.version import __version__

if TYPE_CHECKING:
    from .pipeline import Pipeline, Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Calotype: a compiled inference engine for Stable Diffusion.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and leave.")
    ] = False,
) -> None:
    """Calotype: a compiled inference engine for Stable Diffusion."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to paint, in words.", show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file; with several, -0, -1, ... is added.")
    ] = Path("out.png"),
    like: Annotated[
        Path | None, typer.Option(help="A PNG of ours: take all that is not said here from it.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="demo, a plan, a model's folder, a checkpoint, or a hub id.  [default: demo]"),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, or names in order of preference: onnxruntime,eager.  [default: auto]")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler.  [default: 20]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the prompt steers; 1 is off.  [default: 5.0]")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="How far its spread is taken back, 0 to 1.  [default: 0.0]")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Fractions of the steps between which there is guidance.", show_default=False),
    ] = None,
    cache_interval: Annotated[
        int | None, typer.Option(help="Steps for which the U-Net's deep layers serve.  [default: 1]")
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(help="Layers of the text encoders left out before their end.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture.  [default: random]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures; the i-th has seed + i.  [default: 1]")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="For example dpm++2m-karras or euler.  [default: the model's]")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to set out from.", show_default=False)] = None,
    mask_image: Annotated[
        Path | None, typer.Option(help="Where it is painted over: white; the rest stays.", show_default=False)
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far to go from it, 0 to 1.  [default: 0.8; with a mask 1]")
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(help="demo-canny, a ControlNet's folder, file or hub id; may be repeated.", show_default=False),
    ] = None,
    control_image: Annotated[
        list[Path] | None, typer.Option(help="A picture for each of them.", show_default=False)
    ] = None,
    controlnet_conditioning_scale: Annotated[
        list[float] | None, typer.Option(help="How strongly each steers; one for all will do.  [default: 1.0]")
    ] = None,
    control_guidance_start: Annotated[
        list[float] | None, typer.Option(help="From which fraction of the steps they steer.  [default: 0.0]")
    ] = None,
    control_guidance_end: Annotated[
        list[float] | None, typer.Option(help="Up to which.  [default: 1.0]", show_default=False)
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(help="An autoencoder's folder, file or hub id, in place of the model's.", show_default=False),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA's file or folder, as FILE or FILE:0.8; may be repeated.", show_default=False),
    ] = None,
    textual_inversion: Annotated[
        list[str] | None,
        typer.Option(help="Learned words: FILE or FILE:<word>; may be repeated.", show_default=False),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Look for hub ids in the cache alone.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Print backends, precision and seconds by stage.")] = False,
) -> None:
    """Paint pictures from a prompt, and from pictures."""
    said = {name: value for name, value in locals().items() if name in _REQUEST_OPTIONS and value not in (None, [])}
    _check_output(output)
    made = read_like(like, said, loras_named=bool(lora), model_named=model is not None) if like else Like()
    arguments = {**made.arguments, **said, **_pictures(said)}
    if "prompt" not in arguments:
        raise typer.BadParameter("give a prompt, or --like a picture that has one.", param_hint="PROMPT")
    which = made.model if model is None else model, made.backend if backend is None else backend
    parts = {"controlnet": controlnet or [], "lora": lora or made.loras, "vae": vae, "offline": offline}
    pipe = _load(*which, {**parts, "textual_inversion": textual_inversion or []})
    if model is not None:
        remember_model(model)
    if model is None and made.fingerprint not in (None, pipe.plan.fingerprint):
        raise InputError(
            f"{like} was made by a model of fingerprint {str(made.fingerprint)[:12]}, and {made.model} now has "
            f"{pipe.plan.model_id}; name a --model to use it all the same."
        )
    result = _with_progress(pipe, arguments)
    for path, image, used in zip(_names(output, len(result.images)), result.images, result.seeds, strict=True):
        _write(image, path)
        typer.echo(printable(f"{path}  seed {used}"))
    for note in result.report.notes:
        typer.echo(printable(f"calotype: {note}"), err=True)
    if report:
        typer.echo(str(result.report))


_PER_CONTROLNET = tuple(CALLED.values())
_PICTURES = ("image", "mask_image", "control_image")
_REQUEST_OPTIONS = frozenset(
    {"prompt", "negative_prompt", "steps", "guidance_scale", "seed", "width", "height", "num_images", "scheduler"}
    | {*_PICTURES, *_PER_CONTROLNET, "strength", "guidance_rescale", "clip_skip", "guidance_interval", "cache_interval"}
)


def _pictures(said: Mapping[str, Any]) -> dict[str, Any]:
    """The files that were named, read; and what is said once for all ControlNets."""
    from .images.arrays import read_image

    read: dict[str, Any] = {n: read_image(said[n]) for n in ("image", "mask_image") if n in said}
    if "control_image" in said:
        pictures = [read_image(path) for path in said["control_image"]]
        read["control_image"] = pictures if len(pictures) > 1 else pictures[0]
    return read | {n: said[n][0] for n in _PER_CONTROLNET if len(said.get(n, ())) == 1}


def _load(model: str, backend: str, parts: Mapping[str, Any]) -> Pipeline:
    from .loading import load

    names = [n.strip() for n in backend.split(",") if n.strip()]
    return load(model, backend=names[0] if len(names) == 1 else names, **parts)


def _with_progress(pipe: Pipeline, arguments: dict[str, Any]) -> Result:
    """Run; a bar on a terminal, nothing in a pipe."""
    if sys.stderr is None or not sys.stderr.isatty():
        return pipe(**arguments)
    stream = pipe.stream(**arguments)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("painting", total=None)
        for event in stream:
            progress.update(task, completed=event.step, total=event.total)
    assert event.result is not None
    return event.result


def _check_output(path: Path) -> None:
    """Find out before the work whether the picture can be written."""
    try:
        fault = _output_fault(path)
    except OSError as failed:  # a folder that may not be looked into, a name that is too long
        fault = f"{path} cannot be written: {failed.strerror}."
    if fault:
        raise InputError(fault)


def _output_fault(path: Path) -> str | None:
    if path.suffix.lower() != ".png":
        return f"pictures are written as .png, got {path}."
    if path.is_dir():
        return f"{path} is a folder; name a .png file."
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} to write {path.name} into."
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written: Permission denied."
    return None


def _write(image: Any, path: Path) -> None:
    try:
        image.save(path)
    except OSError as failed:
        raise InputError(f"{path} cannot be written: {failed.strerror or failed}.") from None


def _names(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(count)]


@app.command()
def inspect(
    plan: Annotated[Path, typer.Argument(help="A plan's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say what is in a plan: components, tensors, sizes, precision, checks, and what was tried."""
    from .plan.inspection import describe, format_plan
    from .plan.plan import is_plan, read_plan

    if not is_plan(plan):
        raise InputError(f"{plan} is no plan; make one with: calotype build MODEL -o {plan}")
    opened = read_plan(plan.expanduser())
    typer.echo(json.dumps(describe(opened), indent=1) if as_json else format_plan(opened))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Plain data, for a program or a bug report.")] = False,
) -> None:
    """Say what this machine can run, why not the rest, and the line that mends it."""
    from .doctor import doctor

    doctor.main(as_json=as_json)


def main() -> None:
    """Run the command line: exit code 0, 1 with one plain message on stderr, or 2 for wrong usage."""
    try:
        app()
    except CalotypeError as told:
        typer.echo(f"calotype: {told}", err=True)
        sys.exit(1)
    except OSError as failed:  # a disk that is full, a path that may not be looked at
        typer.echo(printable(f"calotype: {failed.filename or 'output'}: {failed.strerror or failed}"), err=True)
        sys.exit(1)
