"""What peft was told when it made a LoRA, as diffusers keeps it in the file's metadata: alphas, by layer too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.tensor_file import TensorFile

_METADATA = "lora_adapter_metadata"


class Settings:
    """Of one file."""

    def __init__(self, path: Path, told: Mapping[str, Any]) -> None:
        self._path, self._told = path, told

    def alpha(self, component: str, layer: str) -> float | None:
        """None where nothing is said. Raises `SourceError` where what is said makes no sense."""
        try:
            patterns = self._told.get(f"{component}.alpha_pattern") or {}
            alphas = (alpha for key, alpha in patterns.items() if _is_meant(layer, key))
            alpha = next(alphas, self._told.get(f"{component}.lora_alpha"))
            return None if alpha is None else float(alpha)
        except (ValueError, TypeError, ArithmeticError, AttributeError, re.error) as failed:
            raise SourceError(f"{self._path}: the alphas in its {_METADATA} make no sense ({failed}).") from None


def _is_meant(layer: str, key: str) -> bool:
    """peft's rule: a key is a pattern for endings of names, which text encoders of some versions begin otherwise."""
    pattern = re.compile(rf"(.*\.)?({key})$")
    return any(pattern.match(name) for name in (layer, f"text_model.{layer}"))


def settings_of(file: TensorFile) -> Settings:
    """Raises `SourceError` where they cannot be read, or say what is not added here."""
    try:
        told = json.loads(file.metadata.get(_METADATA, "{}"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise SourceError(f"{file.path}: its {_METADATA} is no JSON object; fetch it again.")
    for setting in ("use_rslora", "use_dora", "lora_bias"):
        if any(value for name, value in told.items() if name.endswith(f".{setting}")):
            raise SourceError(f"{file.path} was trained with {setting}, which this version cannot add.")
    return Settings(file.path, told)
