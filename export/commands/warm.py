"""`calotype warm`: everything that the first image of a model waits for, ahead of time."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.errors import InputError

if TYPE_CHECKING:
    from calotype.pipeline import Pipeline

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
    backend: Annotated[str, typer.Option(help="As for generate.")] = "auto",
    precision: Annotated[str, typer.Option(help="As for generate.")] = "auto",
    controlnet: Annotated[list[str] | None, typer.Option(help="A ControlNet; repeatable.", show_default=False)] = None,
    ip_adapter: Annotated[
        list[str] | None, typer.Option(help="An IP-Adapter's file; repeatable.", show_default=False)
    ] = None,
    t2i_adapter: Annotated[
        list[str] | None, typer.Option(help="A T2I-Adapter; repeatable.", show_default=False)
    ] = None,
    motion_adapter: Annotated[str | None, typer.Option(help="Motion modules.", show_default=False)] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="The folder of the IP-Adapters' image encoder.", show_default=False)
    ] = None,
    style_aligned: Annotated[bool, typer.Option("--style-aligned", help="For images of one style.")] = False,
    pag: Annotated[bool, typer.Option("--pag", help="For perturbed attention guidance.")] = False,
    vae: Annotated[str | None, typer.Option(help="Another VAE.", show_default=False)] = None,
    unet: Annotated[str | None, typer.Option(help="Another U-Net.", show_default=False)] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA, as FILE or FILE:0.8.", show_default=False)] = None,
    textual_inversion: Annotated[
        list[str] | None, typer.Option(help="Learned words; repeatable.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read hub ids from the cache only.")] = False,
) -> None:
    """Trace and compile a model now, so that its first image does not wait for it."""
    from calotype.loading import load_checked

    sizes = [_parsed(text) for text in size or []] or [{}]
    began = time.perf_counter()
    names = [name.strip() for name in backend.split(",")]
    parts: dict[str, Any] = {"controlnet": controlnet or [], "vae": vae, "unet": unet, "image_encoder": image_encoder}
    adapters = {"ip_adapter": ip_adapter or [], "t2i_adapter": t2i_adapter or []}
    parts |= {**adapters, "motion_adapter": motion_adapter, "textual_inversion": textual_inversion or []}
    parts |= {"style_aligned": style_aligned, "pag": pag}

    def check(pipe: Pipeline) -> None:
        """Raise what is wrong with a size before the networks are traced."""
        for each in sizes:
            pipe.stream(**_call(pipe, controlnet or [], **adapters), **each)  # does no work

    weights: dict[str, Any] = {"precision": precision, "lora": lora or None, "lora_folder": None, "offline": offline}
    pipe = load_checked(check, model, names[0] if len(names) == 1 else names, parts, **weights)
    for name in pipe.plan.components:  # also those that only some calls use
        pipe.component(name)
    typer.echo(f"opened {', '.join(pipe.plan.components)} in {time.perf_counter() - began:.1f} s")
    for each in sizes:
        began = time.perf_counter()
        result = pipe(**_call(pipe, controlnet or [], **adapters), **each)
        width, height = result.images[0].size
        typer.echo(f"compiled {width} x {height} pixels in {time.perf_counter() - began:.1f} s")


def _parsed(text: str) -> dict[str, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"--size {text!r:.40} is no size; expected 512 or 768x512.", argument="size", got=text)
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def _call(pipe: Pipeline, controlnets: list[str], ip_adapter: list[str], t2i_adapter: list[str]) -> dict[str, Any]:
    from PIL import Image

    gray = Image.new("RGB", (512, 512), "gray")
    arguments: dict[str, Any] = {"prompt": ""} if pipe.plan.prompting.states else {}
    if pipe.plan.image_input is not None:
        arguments["image"] = gray
    if controlnets:
        arguments["control_image"] = [gray] * len(controlnets) if len(controlnets) > 1 else gray
    if ip_adapter and "image_encoder" in pipe.plan.components:
        arguments["ip_adapter_image"] = [gray] * len(ip_adapter)
    if t2i_adapter:
        arguments["adapter_image"] = [gray] * len(t2i_adapter) if len(t2i_adapter) > 1 else gray
    return {**arguments, "steps": 1, "seed": 0}
