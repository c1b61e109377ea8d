"""How a TensorRT engine is built: data, and the words of `calotype build --engine` that say it. Imports no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.errors import InputError

HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
_MOST_CHUNKS = 32  # that the engine's prompts have


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What is not said is the library's own default.

    Attributes:
        refit: weights can be exchanged later, for LoRAs; refittable engines give up some fusions.
        exact: beside the range of sizes a profile for the usual ones alone, for which kernels need not be general.
        plugin: group normalization with SiLU by our own kernel; not with `refit`. Unmeasured.
        weight_streaming: weights may stay in host memory, where a GPU is too small for them.
        version_compatible: later versions of the library can open the engine.
        hardware: "ampere-plus" or "same-capability" GPUs can run it, not the one that is here alone.
        targets: compute capabilities such as 89, for `tensorrt_rtx` alone; empty is the GPU that is here.
        level: 0 to 5, how long to search for the fastest kernels.
        workspace_bytes: the most that one layer may take for itself.
        chunks: how many of the text encoder's lengths (75 tokens) a prompt may have, 1 to 32.
    """

    refit: bool = False
    exact: bool = False
    plugin: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware: str | None = None
    targets: tuple[int, ...] = ()
    level: int | None = None
    workspace_bytes: int | None = None
    chunks: int = 4

    def __post_init__(self) -> None:
        if self.hardware not in (None, *HARDWARE):
            raise InputError(f"hardware is one of {', '.join(HARDWARE)}, got {self.hardware!r}.")
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"the level of a TensorRT build is from 0 to 5, got {self.level}.")
        if not 1 <= self.chunks <= _MOST_CHUNKS:
            raise InputError(f"the chunks of a prompt are from 1 to {_MOST_CHUNKS}, got {self.chunks}.")
        if self.refit and self.plugin:
            raise InputError("an engine with the plugin cannot be refitted; leave out refit or plugin.")

    @property
    def portable(self) -> bool:
        """Can GPUs other than the one that is here run it?"""
        return self.hardware is not None or bool(self.targets)

    @classmethod
    def from_words(cls, words: Sequence[str]) -> EngineOptions:
        """From "weight-streaming", "level=5" and the like. Raises `InputError` with what is known."""
        said: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            field = name.replace("-", "_")
            if field not in _WORDS or bool(equals) == (_WORDS[field] is bool):
                known = ", ".join(n.replace("_", "-") + ("" if kind is bool else "=") for n, kind in _WORDS.items())
                raise InputError(f"an engine's options are {known}; got {word!r}.")
            try:
                said[field] = _WORDS[field](value) if equals else True
            except ValueError:
                kind = "whole numbers with commas between" if field == "targets" else "a whole number"
                raise InputError(f"{name} takes {kind}, got {value!r}.") from None
        return cls(**said)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


_WORDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("refit", "exact", "plugin", "weight_streaming", "version_compatible"), bool),
    "hardware": str,
    "targets": _numbers,
    **dict.fromkeys(("level", "workspace_bytes", "chunks"), int),
}
