"""`calotype warm`: everything that the first image of a model waits for, ahead of time."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer

from calotype.errors import InputError

_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


def warm_command(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("warm")(_warm)


def _warm(
    model: Annotated[str, typer.Argument(help="demo, a plan, a model folder, a checkpoint, or a hub id.")],
    size: Annotated[
        list[str] | None,
        typer.Option(help="Pixels, as 512 or 768x512 (width x height); repeatable.  [default: the model's]"),
    ] = None,
    controlnet: Annotated[list[str] | None, typer.Option(help="A ControlNet; repeatable.", show_default=False)] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE.", show_default=False)] = None,
    backend: Annotated[str, typer.Option(help="As for generate.")] = "auto",
) -> None:
    """Trace and compile a model now, so that its first image does not wait for it."""
    import calotype

    sizes = [_parsed(text) for text in size or []]
    began = time.perf_counter()
    names = [name.strip() for name in backend.split(",")]
    pipe = calotype.load(model, backend=names[0] if len(names) == 1 else names, controlnet=controlnet or (), vae=vae)
    for name in pipe.plan.components:  # also those that only some calls use
        pipe.component(name)
    typer.echo(f"opened {', '.join(pipe.plan.components)} in {time.perf_counter() - began:.1f} s")
    for arguments in sizes or [{}]:
        began = time.perf_counter()
        result = pipe(**_call(pipe, controlnet or []), steps=1, seed=0, **arguments)
        width, height = result.images[0].size
        typer.echo(f"compiled {width} x {height} pixels in {time.perf_counter() - began:.1f} s")


def _parsed(text: str) -> dict[str, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"--size {text!r:.40} is no size; expected 512 or 768x512.", argument="size", got=text)
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def _call(pipe: Any, controlnets: list[str]) -> dict[str, Any]:
    from PIL import Image

    arguments: dict[str, Any] = {"prompt": ""} if pipe.plan.prompting.states else {}
    if pipe.plan.image_input is not None:
        arguments["image"] = Image.new("RGB", (512, 512), "gray")
    images = [Image.new("RGB", (512, 512), "gray") for _ in controlnets]
    return arguments | ({"control_image": images[0] if len(images) == 1 else images} if images else {})
