"""`calotype.load`: open a model, whatever it is given as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.backends import choose
from calotype.errors import InputError
from calotype.lora import Given, loras_from
from calotype.pipeline import Pipeline
from calotype.plan import is_plan, read_plan
from calotype.trust import distrust


def load(
    model: str | Path = "demo",
    *,
    backend: str | Sequence[str] = "auto",
    controlnet: str | Path | Sequence[str | Path] = (),
    lora: Given = None,
    vae: str | Path | None = None,
) -> Pipeline:
    """Open a model.

    Args:
        model: "demo" (the model that ships with Calotype), a plan's folder, a folder in diffusers' layout, or a hub id.
        backend: "auto", a name, or a list of names in order of preference. A backend asked for by name works or raises.
        controlnet: "demo-canny", a ControlNet's folder or hub id, or several, for calls with `control_image`. A
            plan has its own.
        lora: a LoRA's file, "FILE:0.8" or (FILE, 0.8) for a weight other than 1, or several: what `set_lora` takes,
            which changes them later.
        vae: the folder or hub id of an autoencoder to take in place of the model's: an AutoencoderKL, or TAESD's
            AutoencoderTiny, which decodes many times as fast. A plan has its own.

    Raises:
        SourceError: the model cannot be read; BackendError: no backend of those asked for can run;
        InputError: a plan cannot have what is asked for beside it.
    """
    controlnets = _several(controlnet)
    loras = loras_from(lora)  # a file that is missing is told before the work
    pipe = (
        _opened_plan(model, backend, controlnets, vae) if is_plan(model) else _traced(model, backend, controlnets, vae)
    )
    if loras:
        pipe.set_lora(lora)
    return pipe


def _opened_plan(
    model: str | Path, backend: str | Sequence[str], controlnets: Sequence[str | Path], vae: str | Path | None
) -> Pipeline:
    if controlnets:
        raise InputError(f"{model} is a plan, which has its ControlNets inside; name them when it is built.")
    if vae is not None:
        raise InputError(f"{model} is a plan, which has its autoencoder inside; load the model that it is made of.")
    plan = read_plan(Path(model).expanduser())
    reason = distrust(plan)
    refused = {plan.backend: reason} if plan.backend and reason else {}
    return Pipeline(plan, choose(backend, first=plan.backend, refused=refused))


def _traced(
    model: str | Path, backend: str | Sequence[str], controlnets: Sequence[str | Path], vae: str | Path | None
) -> Pipeline:
    choice = choose(backend)
    # The one arrow from the runtime to the exporter: a source that is no plan yet becomes one.
    from calotype.export import prepare

    return Pipeline(prepare(model, controlnets=controlnets, vae=vae, forms=choice.forms), choice)


def _several(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, (str, Path)) else list(given)
