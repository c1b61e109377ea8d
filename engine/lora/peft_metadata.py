"""What peft was told when it made a LoRA, as diffusers keeps it in the file's metadata: alphas, by layer too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..weights.safetensors import TensorFile

_METADATA = "lora_adapter_metadata"


_MOST_MARKS = 2  # in a pattern: with more, or with a repeated group, matching may take years
_MARKS, _REPEATED_GROUP = re.compile(r"[*+?{|]"), re.compile(r"\)[*+?{]")


class PeftMetadata:
    """Of one file."""

    def __init__(self, path: Path, told: Mapping[str, Any]) -> None:
        self._path, self._told = path, told
        self._patterns: dict[str, list[tuple[re.Pattern[str], Any]]] = {}  # of each component, compiled once

    def alpha(self, component: str, layer: str) -> float | None:
        """None where nothing is said. Raises `SourceError` where what is said makes no sense."""
        try:
            if component not in self._patterns:
                alphas = self._told.get(f"{component}.alpha_pattern") or {}
                self._patterns[component] = [(_pattern(key), alpha) for key, alpha in alphas.items()]
            names = (layer, f"text_model.{layer}")  # text encoders of some versions begin so
            matching = (alpha for p, alpha in self._patterns[component] if any(map(p.match, names)))
            alpha = next(matching, self._told.get(f"{component}.lora_alpha"))
            return None if alpha is None else float(alpha)
        except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, re.error) as failed:
            raise SourceError(f"{self._path}: the alphas in its {_METADATA} make no sense ({failed}).") from None


def _pattern(key: str) -> re.Pattern[str]:
    """peft's rule: a key is a pattern for endings of names."""
    if len(_MARKS.findall(key)) > _MOST_MARKS or _REPEATED_GROUP.search(key):
        raise ValueError(f"the pattern {key!r:.80} is too complex")
    return re.compile(rf"(.*\.)?({key})$")


def settings_of(file: TensorFile) -> PeftMetadata:
    """Raises `SourceError` where they cannot be read, or say what is not added here."""
    try:
        told = json.loads(file.metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise SourceError(f"{file.path}: its {_METADATA} is no JSON object; fetch it again.")
    for setting in ("use_rslora", "use_dora", "lora_bias"):
        if any(value for name, value in told.items() if name.endswith(f".{setting}")):
            raise SourceError(f"{file.path} was trained with {setting}, which this version cannot add.")
    return PeftMetadata(file.path, told)
