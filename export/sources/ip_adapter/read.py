"""The folders of a source's IP-Adapters, and of the image encoder that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.plan.image_prompts.layers import ADAPTER

from .file import open_ip_adapter

ENCODER = "image_encoder"


def adapter_folders(paths: Sequence[Path], encoder: Path | None, model: Path) -> dict[str, Path]:
    """Return the folder of each adapter, and that of the image encoder, by their components.

    Args:
        paths: the adapters: files, or folders with one.
        encoder: the image encoder's folder; None to search for it in the model's folder and next to the adapters, as
            the published repositories have it.
        model: the model's folder.

    Raises:
        SourceError: a file is not an IP-Adapter, or the encoder's folder has no config.
    """
    files = [_file_in(path) if path.is_dir() else path for path in paths]
    adapters = [folder for file in files for folder in open_ip_adapter(file)]
    folders = {f"{ADAPTER}_{i}" if i else ADAPTER: folder for i, folder in enumerate(adapters)}
    configs = [read_json(folder / "config.json", "an IP-Adapter's config") for folder in adapters]
    taken = [config for config in configs if config["kind"] != "face_id"]
    if encoder is not None:
        if not (encoder / "config.json").is_file():
            message = f"{encoder} has no config.json; expected the folder of a CLIPVisionModelWithProjection."
            raise SourceError(message, path=encoder)
        return folders | {ENCODER: encoder}
    places = [model / ENCODER, *(place for file in files for place in _near(file))] if taken else []
    fitting = next((place for place in places if all(_fits(place, config) for config in taken)), None)
    return folders if fitting is None else folders | {ENCODER: fitting}


def _near(file: Path) -> Iterator[Path]:
    """Yield where an adapter's encoder may be: in its folder, or in another one of the repository."""
    yield file.parent / ENCODER
    for folder in ("models", "sdxl_models"):
        yield file.parent.parent / folder / ENCODER


def _fits(folder: Path, config: dict[str, Any]) -> bool:
    """Tell whether a folder has the encoder whose outputs are as wide as what an adapter takes."""
    if not (folder / "config.json").is_file():
        return False
    encoder = read_json(folder / "config.json", "the config of an image encoder")
    field = "projection_dim" if config["kind"] == "plain" else "hidden_size"
    return bool(encoder.get(field) == config["image_embeds"][-1])


def _file_in(folder: Path) -> Path:
    """Return the one adapter in a folder. Raises `SourceError` if it has none or several files."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "no .safetensors file"
        raise SourceError(f"{folder} has {names}; pass the file of one IP-Adapter: ip_adapter=FILE.", path=folder)
    return files[0]
