"""`calotype.load`: open a plan, a model folder, a checkpoint or a hub id as a `Pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .backends import choose
from .backends.compatibility import incompatibility_reason
from .backends.components import Components
from .backends.precision import plan_in, selection_for
from .errors import InputError
from .errors.validation import check_bool, with_known_names
from .files.json_file import read_json
from .lora.lora import LoraLike, parse_loras
from .lora.prompt_tags import PromptTags
from .pipeline import Pipeline
from .plan.config_fields import checked
from .plan.image_prompts.perturbed import skips_of
from .plan.image_prompts.style import takes_style
from .plan.plan import is_plan, read_plan
from .request.diffusers_names import OF_LOADING
from .text.tokenizer import check_token_ids
from .weights.precisions import Precisions, parse_precision

PrecisionLike: TypeAlias = "str | Mapping[str, str]"


@with_known_names(OF_LOADING)
def load(
    model: str | Path = "demo",
    *,
    backend: str | Sequence[str] = "auto",
    precision: PrecisionLike = "auto",
    controlnet: str | Path | Sequence[str | Path] = (),
    ip_adapter: str | Path | Sequence[str | Path] = (),
    image_encoder: str | Path | None = None,
    t2i_adapter: str | Path | Sequence[str | Path] = (),
    motion_adapter: str | Path | None = None,
    style_aligned: bool = False,
    pag: bool = False,
    lora: LoraLike = None,
    lora_folder: str | Path | None = None,
    vae: str | Path | None = None,
    unet: str | Path | None = None,
    textual_inversion: str | Path | Sequence[str | Path] = (),
    offline: bool = False,
) -> Pipeline:
    """Load a model.

    Args:
        model: "demo" (the model that ships with Calotype), a plan folder, a folder in diffusers' layout, a checkpoint
            in the original layout (one .safetensors or .gguf file), a hub id, or the address of a model or file at the
            hub.
        backend: "auto", a name, or a list of names by preference. A backend that is named explicitly runs or raises.
        precision: "auto", "fp32", "bf16", "fp16" or "int8", or one for each component: `{"unet": "bf16"}`, where the
            others are "auto". "auto" is the fastest of fp16, bf16 and fp32 that the hardware computes natively, and
            whose outputs on real inputs are close to float32; for a plan, it is what the plan was built in. bf16 and
            fp16 are computed from the model's own weights. "int8" opens what `calotype build` left in the cache.
        controlnet: "demo-canny", a folder, .safetensors file or hub id of a ControlNet or a ControlNet-Union, or
            several, for calls with `control_image`. A plan contains its own.
        ip_adapter: An IP-Adapter's .safetensors file (plain, Plus, Plus-Face, full or FaceID, of Stable Diffusion 1.x
            or XL, in the original or diffusers' layout), or its address at the hub, or several, for calls with
            `ip_adapter_image`. A plan contains its own.
        image_encoder: The folder of the IP-Adapters' image encoder. By default it is that of the model's folder, or
            the folder `image_encoder` next to the file, as h94/IP-Adapter at the hub has it.
        t2i_adapter: A T2I-Adapter's folder, .safetensors file or hub id, or several, for calls with `adapter_image`. By
            default it is that of the model's folder, if it was saved with one. A plan contains its own.
        motion_adapter: Motion modules for a model of Stable Diffusion 1.x, which then makes clips (AnimateDiff): the
            folder or hub id of a MotionAdapter, or a .safetensors file or pickle (.ckpt) in the original layout. By
            default those of the model's folder, if it was saved with some. A plan contains its own.
        style_aligned: Open the U-Net for calls with `style_aligned=True`, whose images share a style. Other calls give
            the same images as without it, and their self-attention takes twice the work. A plan contains its own.
        pag: Open the U-Net for perturbed attention guidance: calls with `pag_scale`. A plan contains its own.
        lora: A LoRA file or folder, or several. For a weight other than 1: "FILE:0.8", (FILE, 0.8) or {FILE: 0.8}.
            `set_lora` takes the same values and changes the LoRAs later.
        lora_folder: A folder of LoRAs that prompts may name: `<lora:NAME:0.8>` adds NAME.safetensors to the LoRAs of
            the call, and is removed from the prompt. Without it, a tag is text.
        vae: The folder, .safetensors file or hub id of a VAE that replaces the model's: an AutoencoderKL, or TAESD's
            AutoencoderTiny, which decodes many times as fast (also as its two original files). A checkpoint contributes
            its VAE. A file does not contain the scaling factor of its latents: an AutoencoderKL uses the model's
            (0.18215 for Stable Diffusion 1.x and 2.x, 0.13025 for XL). A plan contains its own.
        unet: The folder, .safetensors or .gguf file, or hub id of a U-Net that replaces the model's and has its sizes.
            A plan contains its own.
        textual_inversion: A file of learned words (Gal et al. 2022, arXiv 2208.01618), `FILE:<word>` to rename the
            word, or several. A plan contains its own.
        offline: Make no connection; read hub ids from the hub's cache only, as with HF_HUB_OFFLINE=1.

    Returns:
        The loaded pipeline. Call it with a prompt to generate images.

    Raises:
        SourceError: The model, or a file that belongs to it, cannot be read; or a LoRA does not fit the model.
        BackendError: No requested backend can run, or none computes in the precision.
        BuildError: The model was not built in int8, or a plan lacks the precision. The message has the command.
        InputError: `model` is a plan, and `controlnet`, `ip_adapter`, `t2i_adapter`, `motion_adapter`, `vae`, `unet`
            or `textual_inversion` is set: a plan contains its own; or `style_aligned` or `pag` is, and it was built
            without.
    """
    parts: dict[str, Any] = {"controlnet": controlnet, "vae": vae, "unet": unet, "textual_inversion": textual_inversion}
    parts |= {"ip_adapter": ip_adapter, "image_encoder": image_encoder, "t2i_adapter": t2i_adapter}
    parts |= {"motion_adapter": motion_adapter, "pag": check_bool("pag", pag)}
    parts["style_aligned"] = check_bool("style_aligned", style_aligned)
    return load_checked(
        lambda _: None,
        model,
        backend,
        parts,
        precision=precision,
        lora=lora,
        lora_folder=lora_folder,
        offline=offline,
    )


def load_checked(
    check: Callable[[Pipeline], None],
    model: str | Path,
    backend: str | Sequence[str],
    parts: Mapping[str, Any],
    *,
    precision: PrecisionLike | Precisions = "auto",
    lora: LoraLike,
    lora_folder: str | Path | None,
    offline: bool,
) -> Pipeline:
    """Load a model as `load` does. `check` gets the pipeline before its networks are traced and opened."""
    precisions = parse_precision(precision)
    loras = parse_loras(lora)  # a missing file raises before the work
    extras: dict[str, Any] = {
        name: _as_list(parts[name]) for name in ("controlnet", "ip_adapter", "t2i_adapter", "textual_inversion")
    }
    extras |= {name: parts.get(name) for name in ("vae", "unet", "image_encoder", "motion_adapter")}
    extras |= {name: parts.get(name) for name in ("style_aligned", "pag")}
    if is_plan(model):
        pipe = _load_plan(model, backend, extras, precisions)
    else:
        pipe = _trace_model(model, backend, extras, precisions, offline)
    tags = None if lora_folder is None else PromptTags(lora_folder)
    check(pipe)
    pipe._components.open_used(pipe.plan)
    if tags is not None:
        pipe._generator.prompt_tags = tags
    if loras:
        pipe.set_lora([(each.path, each.weight) for each in loras])  # `lora` may be a generator, which is used up
    return pipe


def _load_plan(
    model: str | Path, backend: str | Sequence[str], extras: Mapping[str, Any], precisions: Precisions
) -> Pipeline:
    folder = Path(model).expanduser()
    plan = read_plan(folder)
    inputs = plan.components["unet"].inputs
    has = {"style_aligned": takes_style(inputs), "pag": bool(skips_of(inputs))}
    for name, value in extras.items():
        if value and not has.get(name):
            message = f"{model} is a plan, which contains its own {name}. Pass {name} when you build the plan."
            raise InputError(message, argument=name, got=str(value))
    for name, tokenizer in plan.tokenizers.items():
        config = read_json(folder / name / "config.json", "it contains the vocabulary size of the text encoder")
        check_token_ids(tokenizer, checked(name, name, config)["vocab_size"], folder / name)
    reason = incompatibility_reason(plan)
    refused = {plan.backend: reason} if plan.backend and reason else {}
    choice = choose(backend, first=plan.backend, refused=refused)
    return Pipeline(plan_in(plan, precisions, choice, folder), choice, opens=False)


def _trace_model(
    model: str | Path, backend: str | Sequence[str], extras: dict[str, Any], precisions: Precisions, offline: bool
) -> Pipeline:
    choice = selection_for(choose(backend), precisions)
    # The only import of the exporter in the engine: it turns a source that is not a plan into one.
    from calotype.export import prepare_lazily

    names = {name: f"{name}s" for name in ("controlnet", "ip_adapter", "t2i_adapter")} | {"textual_inversion": "words"}
    parts = {names.get(name, name): value for name, value in extras.items()}
    lazy = prepare_lazily(model, **parts, offline=offline, forms=choice.forms, choice=choice, precisions=precisions)
    return Pipeline(lazy.plan, Components(lazy.plan, choice, lazy.component, lazy.opening), opens=False)


def _as_list(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, (str, Path)) else list(paths)
