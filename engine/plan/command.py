"""The command that rebuilds a plan, from the build options in its manifest.

A manifest may come from a stranger, and users paste the command into a shell. So only values of a strict form are
printed. Names of models and files are free text: placeholders are printed in their place.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors.schema import Check, SchemaError, boolean, integer, list_of, one_of, record, text

NAME = text(r"[a-z][a-z0-9+-]{0,39}", "a name of lower-case letters, digits, + and -")
_RANGE = text(r"\d{1,7}(:\d{1,7}:\d{1,7})?", "a size, or min:opt:max")
_FREE = text()

# The build options that are printed, in this order, by name.
_PRINTED: Mapping[str, Check] = {
    "backend": NAME,
    "precision": NAME,
    "weights": one_of("int8", "int4"),
    **dict.fromkeys(("height", "width", "batch", "frames"), _RANGE),
    **dict.fromkeys(("offline", "style_aligned"), boolean),
    "engine": list_of(text(r"[a-z][a-z_-]{0,39}(=[a-z0-9,-]{1,60})?", "an engine option"), max_length=40),
    "max_loss": list_of(text(r"[a-z_]{1,40}[<>]=[0-9.e+-]{1,40}", "a bound, for example psnr>=30"), max_length=40),
    "fallback": boolean,
    **dict.fromkeys(("calibration", "proof", "proof_steps"), integer(1, 4096)),
    "scheduler": list_of(text(r"[A-Za-z0-9+][A-Za-z0-9+ _-]{0,79}", "a scheduler's name"), max_length=100),
    "fit": list_of(text(r"[A-Za-z0-9+][A-Za-z0-9+ _-]{0,79}:\d{1,4}:\d{1,4}", "SCHEDULER:STEPS:CALLS"), max_length=40),
    "steps": _RANGE,
}
# Free text -> its placeholder.
_PLACEHOLDERS: Mapping[str, str] = {
    **{
        "controlnet": "CONTROLNET",
        "ip_adapter": "IP_ADAPTER",
        "image_encoder": "IMAGE_ENCODER",
        "t2i_adapter": "T2I_ADAPTER",
        "motion_adapter": "MOTION_ADAPTER",
        "lora": "LORA",
        "vae": "VAE",
        "unet": "UNET",
        "textual_inversion": "TEXTUAL_INVERSION",
    },
    **{"prompts": "FILE", "clip_model": "CLIP_MODEL"},
}
_SHIPPED = ("demo", "demo-canny")  # models that come with Calotype


def _names(value: Any, where: str) -> None:
    _FREE(value, where) if isinstance(value, str) else list_of(_FREE, max_length=100)(value, where)


SPEC: Check = record(
    {"model": _FREE, **_PRINTED, **dict.fromkeys(_PLACEHOLDERS, _names)}, optional=(*_PRINTED, *_PLACEHOLDERS)
)


def rebuild_command(build: object, folder: str | Path) -> str:
    """Return the command line that builds the plan in `folder` again. Leaves out each value that fails its check."""
    spec = build.get("spec") if isinstance(build, Mapping) else None
    spec = spec if isinstance(spec, Mapping) else {}
    words = ["calotype", "build", _shipped(spec.get("model"), "MODEL")]
    for name, check in _PRINTED.items():
        if name in spec and _passes(check, spec[name]):
            words += _option(name, spec[name])
    for name, placeholder in _PLACEHOLDERS.items():
        if name in spec and _passes(_names, spec[name]):
            entries = spec[name] if isinstance(spec[name], list) else [spec[name]]
            words += _option(name, [_shipped(entry, placeholder) for entry in entries])
    return shlex.join([*words, "-o", str(folder)])


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else []
    return [word for entry in (value if isinstance(value, list) else [value]) for word in (flag, str(entry))]


def _shipped(name: Any, placeholder: str) -> str:
    return str(name) if name in _SHIPPED else placeholder


def _passes(check: Check, value: Any) -> bool:
    try:
        check(value, "")
    except SchemaError:
        return False
    return True
