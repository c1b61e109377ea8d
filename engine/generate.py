"""The command `calotype generate`. Its options are the fields of `Request`, and the arguments of `load`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import InputError, SamplerError
from .errors.printable import printable
from .files.known_models import SHIPPED, remember_model
from .files.prompt_file import Line, read_prompts
from .images.output import QUALITY, check_output, contact_sheet, is_clip_only, write
from .report.like import Like, read_like
from .request.arguments.argument import Argument, table
from .request.request import Request

if TYPE_CHECKING:
    from .pipeline import Pipeline, Result


def add_generate(app: typer.Typer) -> None:
    """Add the command to `app`."""
    fixed = dict(inspect.signature(_generate, eval_str=True).parameters)
    del fixed["options"]
    signature = inspect.Signature([*fixed.values(), *_options()])
    _generate.__signature__ = signature  # type: ignore[attr-defined]
    app.command("generate")(_generate)


def _options() -> Iterator[inspect.Parameter]:
    """Yield a parameter for each argument of a call that has an option."""
    for name, default, about in table(Request):
        if about.option is not None:
            kind: Any = Annotated[about.option | None, typer.Option(help=_help(default, about), show_default=False)]
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _help(default: Any, about: Argument) -> str:
    words = default if isinstance(default, tuple) else () if default is None else (default,)
    shown = about.shown_default or " ".join(map(str, words))
    return f"{about.help}  [default: {shown}]" if shown else about.help


def _generate(
    prompt: Annotated[str | None, typer.Argument(help="Text that describes the image.", show_default=False)] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A .png, .jpg or .webp file; of a video model .mp4, .webm, .webp or .gif. Several get -0, -1, ... "
            "added.  [default: out.png; out.webp]",
            show_default=False,
        ),
    ] = None,
    image_quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help=f"Quality of a .jpg or .webp file, or of a clip.  [default: {QUALITY}; 80]"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with a prompt, or a JSON object of arguments, on each line.", show_default=False),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all images as one, with -grid added.")] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Reuse the settings in an image of Calotype or AUTOMATIC1111; options win.", show_default=False
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print backends, precision and the time of each stage.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="demo, a plan, a model folder, a checkpoint, or a hub id.  [default: demo]")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, or names by preference: onnxruntime,eager.  [default: auto]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, fp32, bf16, fp16, int8, or unet=bf16,vae_decoder=fp32.  [default: auto]"),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(help="demo-canny, a ControlNet folder, file or hub id; repeatable.", show_default=False),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None, typer.Option(help="An IP-Adapter's file; repeatable.", show_default=False)
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="The folder of the IP-Adapters' image encoder.", show_default=False)
    ] = None,
    t2i_adapter: Annotated[
        list[str] | None, typer.Option(help="A T2I-Adapter's folder, file or hub id; repeatable.", show_default=False)
    ] = None,
    motion_adapter: Annotated[
        str | None,
        typer.Option(help="A folder, file or hub id of motion modules, for clips.", show_default=False),
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="A folder, file or hub id of another VAE.", show_default=False)
    ] = None,
    unet: Annotated[
        str | None, typer.Option(help="A folder, file or hub id of another U-Net.", show_default=False)
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA file or folder, as FILE or FILE:0.8; repeatable.", show_default=False),
    ] = None,
    lora_folder: Annotated[
        str | None, typer.Option(help="The LoRAs that a prompt may name: <lora:NAME:0.8>.", show_default=False)
    ] = None,
    textual_inversion: Annotated[
        list[str] | None, typer.Option(help="Learned words: FILE or FILE:<word>; repeatable.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read hub ids from the cache only.")] = False,
    **options: Any,
) -> None:
    """Generate images from a prompt, and from input images; clips with motion modules or a video model."""
    passed = {name: value for name, value in {"prompt": prompt, **options}.items() if value not in (None, [])}
    if output is not None and not is_clip_only(output):  # the others are checked when the model is known
        check_output(output, image_quality)
    recorded = read_like(like, passed, loras_named=bool(lora), model_named=model is not None) if like else Like()
    arguments = {**recorded.arguments, **_values(passed)}
    which = recorded.model if model is None else model
    if prompts is None and "prompt" not in arguments and which == SHIPPED:
        raise _no_prompt()
    if prompts is not None and prompt is not None:
        raise InputError("pass a prompt or --prompts, not both.", argument="prompts", got=str(prompts))
    lines = [("", {})] if prompts is None else read_prompts(prompts)
    parts: dict[str, Any] = {
        "controlnet": controlnet or [],
        "vae": vae,
        "unet": unet,
        "textual_inversion": textual_inversion or [],
    }
    parts |= {"ip_adapter": ip_adapter or [], "image_encoder": image_encoder, "t2i_adapter": t2i_adapter or []}
    parts["motion_adapter"] = motion_adapter
    lines = _joined(lines) if arguments.get("style_aligned") else lines
    parts["style_aligned"] = any({**arguments, **line}.get("style_aligned") is True for _, line in lines)
    parts["pag"] = any({**arguments, **line}.get("pag_scale") not in (None, 0) for _, line in lines)
    weights: dict[str, Any] = {"lora": lora or recorded.loras, "lora_folder": lora_folder, "offline": offline}
    weights["precision"] = recorded.precision if precision is None else precision

    def check(pipe: Pipeline) -> None:
        """Raise what is wrong with the arguments before the networks are traced."""
        if prompts is None and "prompt" not in arguments and pipe.plan.prompting.states:
            raise _no_prompt()
        from .images.video import check_output_of

        check_output_of(pipe.plan.makes_clips, output, image_quality, grid=grid)
        steering = {"control_image": controlnet, "adapter_image": t2i_adapter, "ip_adapter_image": ip_adapter}
        _check_images(steering, [{**arguments, **line} for _, line in lines])
        for place, line in lines:
            with _at(place):
                pipe.stream(**{**arguments, **line})  # checks its arguments, and does no work

    pipe = _load(check, which, recorded.backend if backend is None else backend, parts, weights)
    if model is not None:
        remember_model(model)
    if model is None and recorded.fingerprint not in (None, pipe.plan.fingerprint):
        raise InputError(
            f"{like} was generated by a model with fingerprint {str(recorded.fingerprint)[:12]}, but {recorded.model} "
            f"now has {pipe.plan.model_id}. Pass --model to use it anyway.",
            argument="model",
        )
    if recorded.foreign and pipe.plan.prompting.pooled and "clip_skip" not in passed:
        arguments.pop("clip_skip", None)  # the web UI skips no layers of such a model
    _echo_notes(recorded.notes)
    images: list[Any] = []
    output = output or Path("out.webp" if pipe.plan.makes_clips else "out.png")
    for result in _results(pipe, arguments, lines):
        several = len(lines) > 1 or len(result.seeds) > 1
        for image, used in zip(result.videos or result.images, result.seeds, strict=True):
            path = output.with_stem(f"{output.stem}-{len(images)}") if several else output
            if result.videos:
                image.save(path, quality=image_quality)
            else:
                write(image, path, image_quality)
            images.append(image)
            typer.echo(printable(f"{path}  seed {used}"))
        _echo_notes(result.report.notes)
        if report:
            typer.echo(str(result.report))
    if grid:
        path, each = output.with_stem(f"{output.stem}-grid"), len(images) // len(lines)
        write(contact_sheet(images, each if len(lines) > 1 and each > 1 else None), path, image_quality)
        typer.echo(printable(str(path)))


def _no_prompt() -> typer.BadParameter:
    return typer.BadParameter("pass a prompt, or --like with an image that has one.", param_hint="PROMPT")


def _joined(lines: list[Line]) -> list[Line]:
    """Return the prompts of all lines as those of one call, whose images share a style. Raises `InputError`."""
    if lines == [("", {})]:
        return lines
    for place, line in lines:
        if line.keys() != {"prompt"}:
            message = f"{place}: with --style-aligned a line is a prompt, got {', '.join(map(str, line))}."
            raise InputError(message, argument="prompts", expected="a prompt")
    return [("", {"prompt": [line["prompt"] for _, line in lines]})]


def _check_images(named: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputError` if an option has no effect, because no call has the image that belongs to it.

    `named` are the values of the options by the arguments of these images.
    """
    for argument, values in named.items():
        if values and all(call.get(argument) is None for call in calls):
            option = argument.replace("_", "-")
            message = f"{', '.join(map(str, values))} has no effect without an image. Pass --{option} FILE."
            raise InputError(message, argument=argument, expected="a file")


def _echo_notes(notes: Iterable[str]) -> None:
    for note in notes:
        typer.echo(printable(f"calotype: {note}"), err=True)


def _results(pipe: Pipeline, arguments: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[Result]:
    """Run a call for each line. The seed counts up over all images."""
    seed = arguments.get("seed")
    for i, (place, line) in enumerate(lines):
        name = f"generating {i + 1}/{len(lines)}" if len(lines) > 1 else "generating"
        with _at(place):
            result = _with_progress(pipe, {**arguments, **({} if seed is None else {"seed": seed}), **line}, name)
        seed = None if seed is None else (seed + len(result.seeds)) % (1 << 64)
        yield result


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Add the file and line to the error of a wrong argument."""
    try:
        yield
    except (InputError, SamplerError) as error:
        if not place:
            raise
        raise InputError(f"{place}: {error}", argument=error.data.get("argument", "prompts")) from None


def _values(passed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as arguments of a call: read image files, and turn a list of one value into that value."""
    from .images.arrays import read_image

    kinds = {name: about.option for name, _, about in table(Request)}
    values: dict[str, Any] = {}
    for name, value in passed.items():
        read: Any = value
        if kinds[name] is Path and name != "video":
            read = read_image(value)
        elif kinds[name] == list[Path]:
            read = [read_image(path) for path in value]
        values[name] = read[0] if isinstance(read, list) and len(read) == 1 else read
    return values


def _load(
    check: Callable[[Pipeline], None], model: str, backend: str, parts: Mapping[str, Any], weights: Mapping[str, Any]
) -> Pipeline:
    from .loading import load_checked

    names = [n.strip() for n in backend.split(",") if n.strip()]
    return load_checked(check, model, names[0] if len(names) == 1 else names, parts, **weights)


def _with_progress(pipe: Pipeline, arguments: dict[str, Any], name: str) -> Result:
    """Run the pipeline, with a progress bar if stderr is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return pipe(**arguments)
    from .report.progress import with_progress

    *_, last = with_progress(pipe.stream(**arguments), name)
    assert last.result is not None
    return last.result
