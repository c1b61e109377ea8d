"""`calotype.load`: open a model, whatever it is given as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.backends import choose
from calotype.errors import InputError
from calotype.pipeline import Pipeline
from calotype.plan import is_plan, read_plan
from calotype.trust import distrust


def load(
    model: str | Path = "demo",
    *,
    backend: str | Sequence[str] = "auto",
    controlnet: str | Path | Sequence[str | Path] = (),
    lora: str | Path | Sequence[str | Path] = (),
    vae: str | Path | None = None,
) -> Pipeline:
    """Open a model.

    Args:
        model: "demo" (the model that ships with Calotype), a plan's folder, a folder in diffusers' layout, or a hub id.
        backend: "auto", a name, or a list of names in order of preference. A backend asked for by name works or raises.
        controlnet: a ControlNet's folder or hub id, or several, for calls with `control_image`. A plan has its own.
        lora: a LoRA's file, "FILE:0.8" for a scale other than 1, or several: fused into the weights. A plan has its
            own.
        vae: the folder or hub id of an autoencoder to take in place of the model's: an AutoencoderKL, or TAESD's
            AutoencoderTiny, which decodes many times as fast. A plan has its own.

    Raises:
        SourceError: the model cannot be read; BackendError: no backend of those asked for can run;
        InputError: a plan cannot have what is asked for beside it.
    """
    controlnets, loras = _several(controlnet), _several(lora)
    if is_plan(model):
        if controlnets or loras:
            raise InputError(f"{model} is a plan, which has ControlNets and LoRAs inside; name them when it is built.")
        if vae is not None:
            raise InputError(f"{model} is a plan, which has its autoencoder inside; load the model that it is made of.")
        plan = read_plan(Path(model).expanduser())
        reason = distrust(plan)
        refused = {plan.backend: reason} if plan.backend and reason else {}
        return Pipeline(plan, choose(backend, first=plan.backend, refused=refused))
    choice = choose(backend)
    # The one arrow from the runtime to the exporter: a source that is no plan yet becomes one.
    from calotype.export import prepare

    return Pipeline(prepare(model, controlnets=controlnets, loras=loras, vae=vae, forms=choice.forms), choice)


def _several(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, (str, Path)) else list(given)
