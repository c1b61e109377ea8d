"""The command line of the engine: `Request`, `load` and the doctor as options. A command does its heavy imports."""

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
from .report.like import ARGUMENT_NAMES, Like, read_like
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


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text that describes the image.", show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file; several images get -0, -1, ... added.")
    ] = Path("out.png"),
    like: Annotated[
        Path | None, typer.Option(help="Reuse the settings in a PNG of Calotype; options win.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="demo, a plan, a model folder, a checkpoint, or a hub id.  [default: demo]"),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, or names by preference: onnxruntime,eager.  [default: auto]")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Text that describes what to avoid.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.  [default: 20]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the prompt; 1 turns guidance off.  [default: 5.0]")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="Correction of overexposure by guidance, 0 to 1.  [default: 0.0]")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Start and end of guidance, as fractions of the steps.", show_default=False),
    ] = None,
    cache_interval: Annotated[
        int | None, typer.Option(help="Compute the deep U-Net layers every N steps.  [default: 1]")
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(help="Number of last text encoder layers to skip.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same image.  [default: random]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None,
    num_images: Annotated[
        int | None, typer.Option(help="Images to generate; image i uses seed + i.  [default: 1]")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="For example dpm++2m-karras or euler.  [default: the model's]")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Input of image-to-image and inpainting.", show_default=False)
    ] = None,
    mask_image: Annotated[
        Path | None, typer.Option(help="Inpainting mask: white is repainted, black is kept.", show_default=False)
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much --image may change, 0 to 1.  [default: 0.8; with a mask 1]")
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(help="demo-canny, a ControlNet folder, file or hub id; repeatable.", show_default=False),
    ] = None,
    control_image: Annotated[
        list[Path] | None, typer.Option(help="An input image for each --controlnet.", show_default=False)
    ] = None,
    controlnet_conditioning_scale: Annotated[
        list[float] | None, typer.Option(help="Strength of each ControlNet, or one for all.  [default: 1.0]")
    ] = None,
    control_guidance_start: Annotated[
        list[float] | None, typer.Option(help="Fraction of the steps at which they start.  [default: 0.0]")
    ] = None,
    control_guidance_end: Annotated[
        list[float] | None,
        typer.Option(help="Fraction of the steps at which they stop.  [default: 1.0]", show_default=False),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(help="A folder, file or hub id of another VAE.", show_default=False),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA file or folder, as FILE or FILE:0.8; repeatable.", show_default=False),
    ] = None,
    textual_inversion: Annotated[
        list[str] | None,
        typer.Option(help="Learned words: FILE or FILE:<word>; repeatable.", show_default=False),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read hub ids from the cache only.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print backends, precision and the time of each stage.")
    ] = False,
) -> None:
    """Generate images from a prompt, and from input images."""
    options = {name: value for name, value in locals().items() if name in _REQUEST_OPTIONS and value not in (None, [])}
    _check_output(output)
    recorded = read_like(like, options, loras_named=bool(lora), model_named=model is not None) if like else Like()
    arguments = {**recorded.arguments, **options, **_read_images(options)}
    if "prompt" not in arguments:
        raise typer.BadParameter("pass a prompt, or --like with an image that has one.", param_hint="PROMPT")
    which = recorded.model if model is None else model, recorded.backend if backend is None else backend
    parts = {"controlnet": controlnet or [], "lora": lora or recorded.loras, "vae": vae, "offline": offline}
    pipe = _load(*which, {**parts, "textual_inversion": textual_inversion or []})
    if model is not None:
        remember_model(model)
    if model is None and recorded.fingerprint not in (None, pipe.plan.fingerprint):
        raise InputError(
            f"{like} was generated by a model with fingerprint {str(recorded.fingerprint)[:12]}, but {recorded.model} "
            f"now has {pipe.plan.model_id}. Pass --model to use it anyway."
        )
    result = _with_progress(pipe, arguments)
    for path, image, used in zip(_names(output, len(result.images)), result.images, result.seeds, strict=True):
        _write(image, path)
        typer.echo(printable(f"{path}  seed {used}"))
    for note in result.report.notes:
        typer.echo(printable(f"calotype: {note}"), err=True)
    if report:
        typer.echo(str(result.report))


_PER_CONTROLNET = tuple(ARGUMENT_NAMES.values())
_IMAGES = ("image", "mask_image", "control_image")
_REQUEST_OPTIONS = frozenset(
    {"prompt", "negative_prompt", "steps", "guidance_scale", "seed", "width", "height", "num_images", "scheduler"}
    | {*_IMAGES, *_PER_CONTROLNET, "strength", "guidance_rescale", "clip_skip", "guidance_interval", "cache_interval"}
)


def _read_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the image files of the options. Turn a list of one value for all ControlNets into that value."""
    from .images.arrays import read_image

    read: dict[str, Any] = {n: read_image(options[n]) for n in ("image", "mask_image") if n in options}
    if "control_image" in options:
        images = [read_image(path) for path in options["control_image"]]
        read["control_image"] = images if len(images) > 1 else images[0]
    return read | {n: options[n][0] for n in _PER_CONTROLNET if len(options.get(n, ())) == 1}


def _load(model: str, backend: str, parts: Mapping[str, Any]) -> Pipeline:
    from .loading import load

    names = [n.strip() for n in backend.split(",") if n.strip()]
    return load(model, backend=names[0] if len(names) == 1 else names, **parts)


def _with_progress(pipe: Pipeline, arguments: dict[str, Any]) -> Result:
    """Run the pipeline, with a progress bar if stderr is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return pipe(**arguments)
    stream = pipe.stream(**arguments)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("generating", total=None)
        for event in stream:
            progress.update(task, completed=event.step, total=event.total)
    assert event.result is not None
    return event.result


def _check_output(path: Path) -> None:
    """Raise `InputError` before the work if the image cannot be written."""
    try:
        fault = _output_fault(path)
    except OSError as failed:  # a folder without read permission, a name that is too long
        fault = f"cannot write {path}: {failed.strerror}."
    if fault:
        raise InputError(fault)


def _output_fault(path: Path) -> str | None:
    if path.suffix.lower() != ".png":
        return f"cannot write {path}: images are written as .png."
    if path.is_dir():
        return f"cannot write {path}: it is a folder. Pass the name of a .png file."
    if not path.parent.is_dir():
        return f"cannot write {path}: there is no folder {path.parent}. Create it first."
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"cannot write {path}: Permission denied."
    return None


def _write(image: Any, path: Path) -> None:
    try:
        image.save(path)
    except OSError as failed:
        raise InputError(f"cannot write {path}: {failed.strerror or failed}.") from None


def _names(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(count)]


@app.command()
def inspect(
    plan: Annotated[Path, typer.Argument(help="A plan folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all data as one JSON object.")] = False,
) -> None:
    """Print what a plan contains: components, tensors, sizes, precision, checks, and the trials of its build."""
    from .plan.inspection import describe, format_plan
    from .plan.plan import is_plan, read_plan

    if not is_plan(plan):
        raise InputError(f"cannot inspect {plan}: it is not a plan. Build one with: calotype build MODEL -o {plan}")
    opened = read_plan(plan.expanduser())
    typer.echo(json.dumps(describe(opened), indent=1) if as_json else format_plan(opened))


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
