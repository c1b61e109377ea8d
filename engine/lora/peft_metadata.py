"""The peft configuration that diffusers stores in the metadata of a LoRA file: alphas, also by layer, and rsLoRA."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..weights.safetensors import TensorFile

_METADATA = "lora_adapter_metadata"
_MAX_MARKS = 2  # in a pattern: with more, or with a repeated group, matching may take years
_MARKS, _REPEATED_GROUP = re.compile(r"[*+?{|]"), re.compile(r"\)[*+?{]")


class PeftMetadata:
    """The peft configuration of one file."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path, self._config = path, config
        self._patterns: dict[str, list[tuple[re.Pattern[str], Any]]] = {}  # by component

    def _setting(self, component: str, name: str) -> Any:
        """Return a setting. diffusers' `save_lora_adapter` writes the U-Net's without its name."""
        return self._config.get(f"{component}.{name}", self._config.get(name) if component == "unet" else None)

    def scale(self, component: str, layer: str, alpha: float | None, rank: int) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

        `alpha` is the one of the tensors, or None. The default is the rank, as in diffusers and kohya.
        """
        alpha = self.alpha(component, layer) if alpha is None else alpha
        stable = bool(self._setting(component, "use_rslora"))
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if stable else rank)

    def alpha(self, component: str, layer: str) -> float | None:
        """Return the alpha of a layer, or None if there is no value. Raises `SourceError` for an invalid value."""
        try:
            if component not in self._patterns:
                alphas = self._setting(component, "alpha_pattern") or {}
                self._patterns[component] = [(_pattern(key), alpha) for key, alpha in alphas.items()]
            names = (layer, f"text_model.{layer}")  # the prefix of text encoders in some versions
            matching = (alpha for p, alpha in self._patterns[component] if any(map(p.match, names)))
            alpha = next(matching, self._setting(component, "lora_alpha"))
            return None if alpha is None else float(alpha)
        except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, re.error) as failed:
            message = f"{self._path}: invalid alphas in its {_METADATA} ({failed})."
            raise SourceError(message, path=self._path, field=_METADATA) from None


def _pattern(key: str) -> re.Pattern[str]:
    """Compile a key of peft: a pattern for the end of a layer's name."""
    if len(_MARKS.findall(key)) > _MAX_MARKS or _REPEATED_GROUP.search(key):
        raise ValueError(f"the pattern {key!r:.80} is too complex")
    return re.compile(rf"(.*\.)?({key})$")


def settings_of(file: TensorFile) -> PeftMetadata:
    """Read the configuration. Raises `SourceError` if it is invalid, or has a setting that is not supported."""
    try:
        config = json.loads(file.metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        message = f"{file.path}: its {_METADATA} is not a JSON object. Download it again."
        raise SourceError(message, path=file.path, field=_METADATA)
    for setting in ("lora_bias",):
        if any(value for name, value in config.items() if name.rpartition(".")[2] == setting):
            message = f"{file.path} was trained with {setting}, which is not supported."
            raise SourceError(message, path=file.path, field=setting)
    return PeftMetadata(file.path, config)
