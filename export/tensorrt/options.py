"""Options of a TensorRT build, and the parser of `calotype build --engine`. Imports no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calotype.errors import InputError

HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
_MAX_CHUNKS = 32  # of a prompt


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of one engine. None is the library's own default.

    Attributes:
        refit: weights can be replaced later, for LoRAs; refittable engines have fewer fusions.
        exact: add a profile for only the opt sizes, so that its kernels need not be general.
        plugin: compute group normalization with SiLU by Calotype's kernel; not with `refit`. Not measured yet.
        weight_streaming: weights may stay in host memory if the GPU is too small for them.
        version_compatible: later versions of the library can open the engine.
        hardware: let all "ampere-plus" or "same-capability" GPUs run the engine, not only this machine's GPU.
        targets: compute capabilities such as 89, only for `tensorrt_rtx`; empty is this machine's GPU.
        level: 0 to 5, the effort of the search for the fastest kernels.
        workspace_bytes: limit of a layer's scratch memory.
        chunks: 1 to 32, the maximum length of a prompt in chunks of 75 tokens.
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
            raise InputError(
                f"hardware must be one of {', '.join(HARDWARE)}, got {self.hardware!r}.",
                argument="hardware",
                got=self.hardware,
            )
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"level must be from 0 to 5, got {self.level}.", argument="level", got=self.level)
        if not 1 <= self.chunks <= _MAX_CHUNKS:
            raise InputError(
                f"chunks must be from 1 to {_MAX_CHUNKS}, got {self.chunks}.", argument="chunks", got=self.chunks
            )
        if self.refit and self.plugin:
            raise InputError(
                "an engine with the plugin cannot be refitted. Leave out refit or plugin.", argument="refit"
            )

    @property
    def portable(self) -> bool:
        """Whether GPUs other than this machine's can run the engine."""
        return self.hardware is not None or bool(self.targets)

    @classmethod
    def from_words(cls, words: Sequence[str]) -> EngineOptions:
        """Parse values such as "weight-streaming" and "level=5". Raise `InputError` if one is unknown or invalid."""
        values: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            field = name.replace("-", "_")
            if field not in _WORDS or bool(equals) == (_WORDS[field] is bool):
                known = ", ".join(n.replace("_", "-") + ("" if kind is bool else "=") for n, kind in _WORDS.items())
                raise InputError(
                    f"unknown engine option {word!r}; expected one of {known}.",
                    argument="engine",
                    got=word,
                    expected=f"one of {known}",
                )
            try:
                values[field] = _WORDS[field](value) if equals else True
            except ValueError:
                kind = "integers separated by commas" if field == "targets" else "an integer"
                raise InputError(
                    f"{name} must be {kind}, got {value!r}.", argument=field, got=value, expected=kind
                ) from None
        return cls(**values)


_WORDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("refit", "exact", "plugin", "weight_streaming", "version_compatible"), bool),
    "hardware": str,
    "targets": lambda text: tuple(int(number) for number in text.split(",")),
    **dict.fromkeys(("level", "workspace_bytes", "chunks"), int),
}
