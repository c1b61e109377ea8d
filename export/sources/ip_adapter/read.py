"""IP-Adapters as parts of a source, with the image encoder that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.files.json_file import read_json
from calotype.plan.image_prompts.layers import ADAPTER

from ..source import Source, located
from .file import open_ip_adapter

ENCODER = "image_encoder"


def add_ip_adapters(
    source: Source, files: Sequence[str | Path], image_encoder: str | Path | None, *, offline: bool
) -> Source:
    """Return the source with IP-Adapters.

    Args:
        source: a Stable Diffusion model.
        files: the adapters, as files, or their addresses at the hub.
        image_encoder: the folder of their image encoder; None to search for it.
        offline: make no connection for addresses.

    Raises:
        SourceError: a file is missing, damaged or not an IP-Adapter.
    """
    if not files:
        if image_encoder is not None:
            raise SourceError("image_encoder needs an IP-Adapter. Pass ip_adapter=, or omit it.", path=image_encoder)
        return source
    if not source.tokenizers:
        message = f"{source.folder} takes no IP-Adapter: it is not a model of Stable Diffusion with text."
        raise SourceError(message, path=source.folder)
    encoder = None if image_encoder is None else located(image_encoder, ENCODER, offline)
    folders = adapter_folders([located(each, ADAPTER, offline) for each in files], encoder, source.folder)
    configs = {name: read_json(path / "config.json", f"the {name}'s config") for name, path in folders.items()}
    return source.with_parts(folders, configs)


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
    fitting = next((place for place in places if all(_outputs_suit(place, config) for config in taken)), None)
    return folders if fitting is None else folders | {ENCODER: fitting}


def _near(file: Path) -> Iterator[Path]:
    """Yield where an adapter's encoder may be: in its folder, or in another one of the repository."""
    yield file.parent / ENCODER
    for folder in ("models", "sdxl_models"):
        yield file.parent.parent / folder / ENCODER


def _outputs_suit(folder: Path, config: dict[str, Any]) -> bool:
    """Return whether a folder has the encoder whose outputs are as wide as what an adapter takes."""
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
