"""`<lora:name:0.8>` in prompts, for a pipeline that was loaded with a folder of LoRAs.

A name is that of a file in the folder or its subfolders, without its suffix; never a path. Without a folder,
`text.foreign_syntax` notes a tag as text without a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, SourceError
from .lora import Lora
from .manager import LoraManager

_TAG = re.compile(r"\s*<(?:lora|lyco):([^<>:]+)(?::([^<>]*))?>", re.IGNORECASE)
_SUFFIX = ".safetensors"
_MAX_LISTED = 8


def without_tags(prompt: Any) -> tuple[Any, list[tuple[str, float]]]:
    """Return a prompt, or a list of prompts, without its tags, and the names and weights in them.

    Raises:
        InputError: a weight is invalid, or the prompts of one call name different LoRAs.
    """
    several = isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes))
    texts = list(prompt) if several else [prompt]
    named = [_named(text) if isinstance(text, str) else [] for text in texts]
    if any(each != named[0] for each in named):
        message = "the prompts of one call name different LoRAs; a call has one set of weights. Call once for each."
        raise InputError(message, argument="prompt")
    bare = [_TAG.sub("", text).strip() if isinstance(text, str) and _TAG.search(text) else text for text in texts]
    return bare if several else bare[0], named[0] if named else []


def _named(text: str) -> list[tuple[str, float]]:
    return [(match[1].strip(), _weight(match[0], match[2])) for match in _TAG.finditer(text)]


class PromptTags:
    """The LoRAs that prompts may name: those in `folder`."""

    def __init__(self, folder: str | Path) -> None:
        """Raise `SourceError` if there is no such folder."""
        try:
            self.folder = Path(folder).expanduser()
            exists = self.folder.is_dir()
        except (TypeError, OSError, RuntimeError, ValueError) as failed:
            raise SourceError(f"invalid lora_folder {folder!r:.80} ({failed}).", path=str(folder)) from None
        if not exists:
            raise SourceError(f"lora_folder: there is no folder {self.folder}.", path=self.folder)
        self._own: tuple[Lora, ...] = ()  # the pipeline's LoRAs without those of prompts
        self._set: tuple[Lora, ...] | None = None  # what the last call set

    def apply(self, prompt: Any, loras: LoraManager) -> Any:
        """Add the LoRAs that the prompt names to the pipeline's own, and return the prompt without the tags.

        Raises:
            InputError: a name or a weight is unknown, or the prompts of one call name different LoRAs.
            SourceError: a file does not fit the model.
        """
        bare, named = without_tags(prompt)
        files = [(self._path(name), weight) for name, weight in named]
        active = loras.loras
        if self._set is None or active != self._set:  # `set_lora` was called
            self._own = active
        requested = [(lora.path, lora.weight) for lora in self._own] + files
        if requested != [(lora.path, lora.weight) for lora in active]:
            loras.set(requested)
        self._set = loras.loras
        return bare

    def _path(self, name: str) -> Path:
        files = sorted(path for path in self.folder.rglob(f"*{_SUFFIX}") if path.is_file())
        same = [path for path in files if path.stem == name]
        if len(same) == 1:
            return same[0]
        known = ", ".join(dict.fromkeys(path.stem for path in files[:_MAX_LISTED])) or "none"
        reason = f"has several LoRAs named {name!r:.80}" if same else f"has no LoRA named {name!r:.80}"
        raise InputError(f"{self.folder} {reason}; its first LoRAs are {known}.", argument="prompt", got=name)


def _weight(tag: str, number: str | None) -> float:
    try:
        weight = 1.0 if number is None else float(number)
    except ValueError:
        weight = float("nan")
    if not -10 <= weight <= 10:
        message = f"{tag.strip()!r:.80} has no weight from -10 to 10; expected <lora:NAME> or <lora:NAME:0.8>."
        raise InputError(message, argument="prompt", got=tag.strip())
    return weight
