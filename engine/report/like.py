"""`--like`: what a PNG says of how it was made, as the arguments that make it again.

The PNG may come from a stranger. So it chooses no model but one that the user named before, each value is checked, and
a LoRA has to be the very file that the picture was made with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..errors.schema import Check, list_of, number, text
from ..files.known_models import SHIPPED, is_known

CALLED = {  # in a PNG, and in a call
    "control_scales": "controlnet_conditioning_scale",
    "control_starts": "control_guidance_start",
    "control_ends": "control_guidance_end",
}
_PICTURES = (("strength", "image"), ("masked", "mask_image"), ("control_scales", "control_image"))
_NUMBERS = list_of(number(-1e6, 1e6), max_length=100)
_NAME, _WEIGHT, _DIGEST = text(r"[^\x00]{1,4096}", "a path"), number(-10, 10), text(r"[0-9a-f]{64}", "a SHA-256")


@dataclass(frozen=True, kw_only=True)
class Like:
    """What a PNG says of how it was made; without a PNG, what holds where nothing is said."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str = SHIPPED
    backend: str = "auto"
    fingerprint: str | None = None
    loras: Sequence[str] = ()


def read_like(path: Path, options: Collection[str], *, loras_named: bool, model_named: bool) -> Like:
    """Read a PNG's settings. `options` are those of the command line that were given, whose values win.

    Raises:
        InputError: it is no PNG of ours, its settings are damaged, or it takes a picture or a model to be named.
    """
    from ..backends import NAMES
    from ..images.png import settings_of

    settings = settings_of(path)
    _check_pictures(path, settings, options)
    try:
        model, backend = settings["model"], settings["backend"]
        if backend not in NAMES:
            raise ValueError(f"backend {backend!r:.80}")
        if not model_named and not is_known(model):
            raise InputError(
                f"{path} was made with the model {model!r:.300}, and a picture does not choose what is loaded. If you "
                "trust this model, name it: --model NAME."
            )
        return Like(
            arguments=_arguments(settings),
            model=model,
            backend=backend,
            fingerprint=settings["model_fingerprint"],
            loras=() if loras_named else _loras(path, settings),
        )
    except InputError:
        raise
    except (KeyError, ValueError, RecursionError) as broken:
        raise InputError(f"{path} does not say all of how it was made ({broken}).") from None


def _check_pictures(path: Path, settings: Mapping[str, str], options: Collection[str]) -> None:
    """Raise `InputError` where the picture was made from others, which have to be named."""
    for mark, option in _PICTURES:
        if mark in settings and option not in options:
            name = option.replace("_", "-")
            raise InputError(f"{path} was made with a picture, which a PNG does not hold; name it: --{name} FILE.")
    if "denoising_start" in settings or "denoising_end" in settings:
        raise InputError(f"{path} is one part of a hand-over between models, whose latents a PNG does not hold.")


def _arguments(settings: Mapping[str, str]) -> dict[str, Any]:
    from ..sampling.schedulers import SchedulerSpec

    kinds: dict[str, Callable[[str], Any]] = {"prompt": str, "steps": int, "seed": int, "width": int}
    kinds |= {"height": int, "guidance_scale": float, "scheduler": SchedulerSpec.from_json}
    optional: dict[str, Callable[[str], Any]] = {"negative_prompt": str, "strength": float}
    optional |= {**dict.fromkeys(CALLED, _numbers), "guidance_interval": _numbers}
    optional |= {"guidance_rescale": float, "clip_skip": int, "cache_interval": int}
    kinds |= {name: kind for name, kind in optional.items() if name in settings}  # left out where it was not said
    return {CALLED.get(name, name): kind(settings[name]) for name, kind in kinds.items()}


def _numbers(value: str) -> list[float]:
    return list(_checked(value, _NUMBERS))


def _loras(path: Path, settings: Mapping[str, str]) -> list[str]:
    """The files that the picture was made with, where they are what they were."""
    from ..lora.lora import parse_loras

    entries = _checked(settings.get("loras", "[]"), list_of(_check_lora, max_length=100))
    loras = parse_loras([(file, weight) for file, weight, _ in entries])
    for lora, (file, _, digest) in zip(loras, entries, strict=True):
        if lora.digest != digest:
            raise InputError(f"{file} is another file than the picture was made with; name those to use: --lora FILE.")
    return [str(lora) for lora in loras]


def _check_lora(value: Any, where: str) -> None:
    list_of(lambda entry, at: None, 3, 3)(value, where)
    for check, entry in zip((_NAME, _WEIGHT, _DIGEST), value, strict=True):
        check(entry, where)


def _checked(value: str, check: Check) -> Any:
    """The data in JSON. Raises `ValueError` where they do not pass the check."""
    data = json.loads(value)
    check(data, "a setting")
    return data
