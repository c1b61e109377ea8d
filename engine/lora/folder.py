"""Find the LoRA file in a folder: the file that diffusers writes, or the only one. Reads no file."""

from __future__ import annotations

from pathlib import Path

from ..errors import SourceError

_OF_DIFFUSERS = "pytorch_lora_weights.safetensors"
_OF_PEFT = "adapter_config.json"  # holds the alpha
_MAX_LISTED = 8  # names in a message


def lora_in(folder: Path) -> Path:
    """Return the LoRA file in `folder`. Raises `SourceError` that lists the folder if the choice is not clear."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as failed:
        raise SourceError(f"cannot read the LoRA folder {folder}: {failed.strerror}.") from None
    files = [name for name in names if name.endswith(".safetensors")]
    if _OF_DIFFUSERS in files:
        return folder / _OF_DIFFUSERS
    if _OF_PEFT in names:
        raise SourceError(
            f"{folder} is a peft adapter: Calotype does not read {_OF_PEFT}. Save the adapter with diffusers' "
            "save_lora_weights and pass the file that it writes."
        )
    if len(files) == 1:
        return folder / files[0]
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    listed = ", ".join([*map(repr, names[:_MAX_LISTED]), *more]) or "nothing"
    raise SourceError(
        f"cannot choose a LoRA in {folder}: expected {_OF_DIFFUSERS} or one .safetensors file, got {listed}. "
        "Pass a file."
    )
