"""A LoRA named as its folder: the file in it that diffusers writes, or the single one. Reads no file."""

from __future__ import annotations

from pathlib import Path

from ..errors import SourceError

_OF_DIFFUSERS = "pytorch_lora_weights.safetensors"
_OF_PEFT = "adapter_config.json"  # holds the alpha of the file beside it
_LISTED = 8  # names in a message


def lora_in(folder: Path) -> Path:
    """The LoRA file in `folder`. Raises `SourceError` that lists the folder where none is meant for sure."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as failed:
        raise SourceError(f"the LoRA folder {folder} cannot be read ({failed.strerror}).") from None
    files = [name for name in names if name.endswith(".safetensors")]
    if _OF_DIFFUSERS in files:
        return folder / _OF_DIFFUSERS
    if _OF_PEFT in names:
        raise SourceError(
            f"{folder} is an adapter of peft, whose {_OF_PEFT} is not read here; save it with diffusers' "
            "save_lora_weights, and name the file that it writes."
        )
    if len(files) == 1:
        return folder / files[0]
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    listed = ", ".join([*map(repr, names[:_LISTED]), *more]) or "nothing"
    raise SourceError(
        f"{folder} has no {_OF_DIFFUSERS}, and not exactly one .safetensors file; name the file. It holds {listed}."
    )
