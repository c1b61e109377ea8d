"""`calotype.load`: open a model, whatever it is given as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .backends import choose
from .backends.compatibility import incompatibility_reason
from .errors import InputError
from .errors.validation import with_known_names
from .files.json_file import read_json
from .lora.lora import LoraLike, parse_loras
from .pipeline import Pipeline
from .plan.config_fields import checked
from .plan.plan import is_plan, read_plan
from .request.diffusers_names import OF_LOADING
from .text.tokenizer import check_token_ids


@with_known_names(OF_LOADING)
def load(
    model: str | Path = "demo",
    *,
    backend: str | Sequence[str] = "auto",
    controlnet: str | Path | Sequence[str | Path] = (),
    lora: LoraLike = None,
    vae: str | Path | None = None,
    textual_inversion: str | Path | Sequence[str | Path] = (),
    offline: bool = False,
) -> Pipeline:
    """Open a model.

    Args:
        model: "demo" (the model that ships with Calotype), a plan's folder, a folder in diffusers' layout, a checkpoint
            in the original layout (one .safetensors file), or a hub id.
        backend: "auto", a name, or a list of names in order of preference. A backend asked for by name works or raises.
        controlnet: "demo-canny", a ControlNet's folder, .safetensors file or hub id, or several, for calls with
            `control_image`. A plan has its own.
        lora: a LoRA's file or folder, "FILE:0.8", (FILE, 0.8) or {FILE: 0.8} for a weight other than 1, or several:
            what `set_lora` takes, which changes them later.
        vae: the folder, .safetensors file or hub id of an autoencoder to take in place of the model's: an
            AutoencoderKL, or TAESD's AutoencoderTiny, which decodes many times as fast. Of a checkpoint its autoencoder
            is taken. A file does not say what its latents are scaled by: an AutoencoderKL's is the factor of the
            model's own (0.18215 of Stable Diffusion 1.x and 2.x, 0.13025 of XL). A plan has its own.
        textual_inversion: a file of learned words (Gal et al. 2022, arXiv 2208.01618), `FILE:<word>` to call it
            otherwise than the file does, or several. A plan has its own.
        offline: make no connection; hub ids are looked for in the hub's cache alone, as with HF_HUB_OFFLINE=1.

    Raises:
        SourceError: the model, or a file for it, cannot be read.
        BackendError: no requested backend can run.
        InputError: a plan contains its ControlNets, VAE and learned words, and takes no others.
    """
    loras = parse_loras(lora)  # a file that is missing is told before the work
    beside = {"ControlNets": _several(controlnet), "autoencoder": vae, "learned words": _several(textual_inversion)}
    pipe = _opened_plan(model, backend, beside) if is_plan(model) else _traced(model, backend, beside, offline)
    if loras:
        pipe.set_lora([(each.path, each.weight) for each in loras])  # `lora` may be a generator, which is spent
    return pipe


def _opened_plan(model: str | Path, backend: str | Sequence[str], beside: Mapping[str, Any]) -> Pipeline:
    for what, named in beside.items():
        if named:
            raise InputError(f"{model} is a plan, which has its {what} inside; name them when it is built.")
    folder = Path(model).expanduser()
    plan = read_plan(folder)
    for name, tokenizer in plan.tokenizers.items():
        config = read_json(folder / name / "config.json", "it says how many token ids the text encoder knows")
        check_token_ids(tokenizer, checked(name, name, config)["vocab_size"], folder / name)
    reason = incompatibility_reason(plan)
    refused = {plan.backend: reason} if plan.backend and reason else {}
    return Pipeline(plan, choose(backend, first=plan.backend, refused=refused))


def _traced(model: str | Path, backend: str | Sequence[str], beside: Mapping[str, Any], offline: bool) -> Pipeline:
    choice = choose(backend)
    # The one arrow from the runtime to the exporter: a source that is no plan yet becomes one.
    from calotype.export import prepare_lazily

    nets, vae, words = beside.values()
    plan, component = prepare_lazily(model, controlnets=nets, vae=vae, words=words, offline=offline, forms=choice.forms)
    return Pipeline(plan, choice, component)


def _several(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, (str, Path)) else list(given)
