"""`--like`: read the settings in an image file as the arguments that generate its image again.

It reads files of Calotype, and of AUTOMATIC1111's web UI. A file may come from a stranger. So it can only choose a
model that the user has named before, each value is checked, and a LoRA must be the same file, by its digest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..errors.schema import Check, list_of, number, text
from ..files.digest import file_digest
from ..files.known_models import SHIPPED, is_known
from ..request.arguments.argument import from_settings
from ..request.request import Request
from ..upscaling import LANCZOS, RESAMPLINGS
from ..weights.precisions import PRECISIONS, Precisions

_IMAGES = (
    *(("strength", "image"), ("masked", "mask_image"), ("control_scales", "control_image")),
    *(("adapter_scales", "adapter_image"), ("region_prompts", "region_masks")),
    *(("image_guidance_scale", "image"), ("noise_level", "image")),
)
_NAME, _WEIGHT, _DIGEST = text(r"[^\x00]{1,4096}", "a path"), number(-10, 10), text(r"[0-9a-f]{64}", "a SHA-256")


@dataclass(frozen=True, kw_only=True)
class Like:
    """Settings of a generated image from its file; the defaults are those without a file."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str = SHIPPED
    backend: str = "auto"
    precision: Precisions = field(default_factory=Precisions)
    fingerprint: str | None = None
    loras: Sequence[str] = ()
    notes: Sequence[str] = ()
    foreign: bool = False  # another program wrote the file


def read_like(path: Path, options: Collection[str], *, loras_named: bool, model_named: bool) -> Like:
    """Read the settings of an image file.

    Args:
        path: a PNG, JPEG or WebP of Calotype or AUTOMATIC1111.
        options: the names of the options on the command line. Their values win.
        loras_named: whether the command line names LoRAs; model_named: whether it names a model.

    Raises:
        InputError: the file has no settings, its settings are damaged, or it needs an option: an input image,
            a LoRA or a model.
    """
    from ..backends import NAMES
    from ..images.png import CHUNK, PARAMETERS, settings_of
    from ..sampling.schedulers import SchedulerSpec

    settings = settings_of(path)
    if CHUNK not in settings:
        return _of_web_ui(path, settings[PARAMETERS], options, loras_named=loras_named, model_named=model_named)
    _check_input_images(path, settings, options)
    _check_upscaler(path, settings, options)
    try:
        model, backend = settings["model"], settings["backend"]
        if backend not in NAMES:
            raise ValueError(f"backend {backend!r:.80}")
        if not model_named and not is_known(model):
            raise InputError(
                f"{path} was generated with the model {model!r:.300}, which you have not used before. If you trust "
                "this model, pass --model NAME.",
                argument="model",
                got=model,
            )
        return Like(
            arguments={**from_settings(Request, settings), "scheduler": SchedulerSpec.from_json(settings["scheduler"])},
            model=model,
            backend=backend,
            precision=_precision(settings.get("precision", "auto")),
            fingerprint=settings["model_fingerprint"],
            loras=() if loras_named else _loras(path, settings),
        )
    except InputError:
        raise
    except (KeyError, ValueError, RecursionError) as broken:
        raise InputError(f"cannot read all settings of {path}: {broken}.", argument="like") from None


def _precision(text: str) -> Precisions:
    """Return the precisions of an image, without those that only a plan has, such as fp8."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    known = {name: precision for name, _, precision in pairs if precision in PRECISIONS}
    default = known.pop("", "auto")
    return Precisions(default=default, components=known, checks_names=False)


def _of_web_ui(path: Path, text: str, options: Collection[str], *, loras_named: bool, model_named: bool) -> Like:
    """Read the settings of AUTOMATIC1111's web UI, which name a model and LoRAs but no files."""
    from .infotext import notes_of, parse_infotext

    try:
        info = parse_infotext(text)
    except ValueError as broken:
        raise InputError(f"cannot read all settings of {path}: {broken}.", argument="like") from None
    _check_input_images(path, {"strength": ""} if info.from_image else {}, options)
    _check_input_images(path, {"masked": ""} if info.from_mask else {}, options)
    if not model_named:
        name = "a model" if info.model is None else f"the model {info.model!r:.300}"
        message = f"{path} was generated with {name} of another program. Pass --model FILE."
        raise InputError(message, argument="model", got=info.model)
    named = ", ".join(f"{name}:{weight:g}" for name, weight in info.loras)
    lost = (
        []
        if loras_named or not named
        else [f"{path}: its prompt names LoRAs: {named}. Pass them as --lora FILE:WEIGHT"]
    )
    return Like(arguments=info.arguments, notes=[*notes_of(path, info), *lost], foreign=True)


def _check_input_images(path: Path, settings: Mapping[str, str], options: Collection[str]) -> None:
    """Raise `InputError` if the image was generated from input images that no option names."""
    for mark, image in _IMAGES:
        option = "video" if (mark, image) == ("strength", "image") and "frames" in settings else image
        if mark in settings and option not in options:
            name = option.replace("_", "-")
            raise InputError(
                f"{path} was generated from an input image, which it does not contain. Pass --{name} FILE.",
                argument=option,
            )
    if names := settings.get("unstored"):
        message = f"{path} was generated with {names!r:.100}, which a PNG does not contain."
        raise InputError(message, argument="like", got=names)
    if "denoising_start" in settings or "denoising_end" in settings:
        raise InputError(
            f"{path} was generated with a handoff of latents between models, which it does not contain.",
            argument="like",
        )


def _check_upscaler(path: Path, settings: Mapping[str, str], options: Collection[str]) -> None:
    """Raise `InputError` if the file of the upscaler of `hires` is not the one that the image was generated with."""
    file = settings.get("hires_upscaler", LANCZOS)
    if file in RESAMPLINGS or "hires_upscaler" in options:
        return
    if not Path(file).is_file() or file_digest(Path(file)) != settings.get("hires_upscaler_digest"):
        raise InputError(
            f"{path} was enlarged by the upscaler {file!r:.300}, and there is no such file, or another one. "
            "Pass --hires-upscaler FILE.",
            argument="hires_upscaler",
            got=file,
        )


def _loras(path: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the LoRA files of the image. Raise `InputError` if a file has changed since."""
    from ..lora.lora import parse_loras

    entries = _checked(settings.get("loras", "[]"), list_of(_check_lora, max_length=100))
    loras = parse_loras([(file, weight) for file, weight, _ in entries])
    for lora, (file, _, digest) in zip(loras, entries, strict=True):
        if lora.digest != digest:
            raise InputError(
                f"{file} is not the LoRA file that the image was generated with. Pass --lora FILE.",
                argument="lora",
                got=file,
            )
    return [str(lora) for lora in loras]


def _check_lora(value: Any, where: str) -> None:
    list_of(lambda entry, at: None, 3, 3)(value, where)
    for check, entry in zip((_NAME, _WEIGHT, _DIGEST), value, strict=True):
        check(entry, where)


def _checked(value: str, check: Check) -> Any:
    """Return the data in a JSON string. Raises `ValueError` if they fail the check."""
    data = json.loads(value)
    check(data, "a setting")
    return data
