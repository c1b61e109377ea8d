"""The contenders of a case: a Calotype backend in a precision, or a peer. Data, and the words that name them.

The name of a contender is MAKER[:BACKEND]:PRECISION: "calotype:openvino:bf16", "diffusers:fp32". `calotype.export`
knows the backends and precisions that a plan can have. A Calotype contender may end in a variant:
"calotype:openvino:bf16:without=PIECE" disables an optimization (see CALOTYPE_DISABLE), and "...:cache_interval=3",
"...:guidance_interval=0.2-0.8" or "...:calls=10" does less work for an image.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calotype.backends import NAMES
from calotype.backends.openvino.rewrites import PIECES
from calotype.errors import InputError
from calotype.export.builder.spec import BACKENDS, PRECISIONS

OURS = "calotype"


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """A peer: the folder of its environment and worker, and its settings in addition to the job."""

    folder: str
    precisions: tuple[str, ...]
    device: str = "cpu"  # "cpu", "cuda", or "any": the device of the run
    settings: Mapping[str, Any] = field(default_factory=dict)


def _onnx(provider: str) -> dict[str, str]:
    return {"provider": f"{provider}ExecutionProvider"}


_TORCH = ("fp32", "bf16", "fp16")
PEERS: Mapping[str, PeerSpec] = {
    "diffusers": PeerSpec(folder="diffusers", precisions=_TORCH, device="any"),
    "torch-compile": PeerSpec(folder="diffusers", precisions=_TORCH, device="any", settings={"compile": True}),
    "optimum": PeerSpec(folder="optimum", precisions=("fp32",), settings=_onnx("CPU")),
    "openvino-genai": PeerSpec(folder="openvino_genai", precisions=("fp32", "bf16", "int8")),
    "stable-diffusion.cpp": PeerSpec(folder="stable_diffusion_cpp", precisions=("fp16",)),
    "onnxruntime-cuda": PeerSpec(
        folder="onnxruntime_cuda", precisions=("fp32",), device="cuda", settings=_onnx("CUDA")
    ),
    "tensorrt": PeerSpec(folder="tensorrt", precisions=("fp32", "fp16"), device="cuda", settings=_onnx("Tensorrt")),
}
# The default precisions of our backends.
USUAL: Mapping[str, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16", "auto"),
    "onnxruntime": ("fp32", "auto"),
    "eager": ("fp32",),
    "tensorrt": ("fp16", "fp8"),
    "cuda": ("fp16", "bf16"),
    "onnxruntime-cuda": ("fp16",),
}
_BACKENDS = tuple(dict.fromkeys([*NAMES, *BACKENDS]))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One contender in one precision. Its worker gets `settings` unchanged."""

    maker: str
    backend: str  # of Calotype: the backend; of a peer: its own name
    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""  # of Calotype: "without=all", "cache_interval=3", "calls=10"

    @property
    def name(self) -> str:
        """The name as users write it; it also matches rows."""
        words = [self.maker, self.backend, self.precision] if self.is_ours else [self.maker, self.precision]
        return ":".join([*words, self.variant] if self.variant else words)

    @property
    def is_ours(self) -> bool:
        """Whether the contender is Calotype itself."""
        return self.maker == OURS


def contender(name: str) -> Contender:
    """Return the contender of a name. Raises `InputError` with the nearest known names."""
    maker, *rest = name.strip().split(":")
    if maker == OURS and len(rest) in (2, 3) and rest[0] in _BACKENDS and rest[1] in PRECISIONS:
        backend, precision, variant = [*rest, ""][:3]
        settings = _settings_of(variant) if variant else {}
        return Contender(maker=maker, backend=backend, precision=precision, variant=variant, settings=settings)
    if maker in PEERS and len(rest) == 1 and rest[0] in PEERS[maker].precisions:
        return Contender(maker=maker, backend=maker, precision=rest[0], settings=PEERS[maker].settings)
    known = [f"{OURS}:{backend}:{p}" for backend in _BACKENDS for p in PRECISIONS]
    known += [f"{peer}:{p}" for peer, spec in PEERS.items() for p in spec.precisions]
    hint = _hint(name, known)
    message = f"unknown contender {name!r}. Write calotype:BACKEND:PRECISION or PEER:PRECISION.{hint}"
    raise InputError(message, argument="backend", got=name)


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {', '.join(near)}?" if near else ""


def _settings_of(variant: str) -> dict[str, Any]:
    """Return the settings of a variant. Raises `InputError`."""
    name, _, value = variant.partition("=")
    try:
        if name == "without" and (value == "all" or set(value.split("+")) <= set(PIECES)):
            return {"without": list(PIECES) if value == "all" else value.split("+")}
        if name in ("cache_interval", "calls"):
            return {"arguments": {name: int(value)}}
        if name == "guidance_interval":
            start, end = map(float, value.split("-"))
            return {"arguments": {name: [start, end]}}
    except ValueError:
        pass
    raise InputError(
        f"unknown variant {variant!r}. Write without=all, without=PIECE+PIECE of {', '.join(PIECES)}, "
        "cache_interval=3, calls=10 or guidance_interval=0.2-0.8.",
        argument="backend",
        got=variant,
    )


def contenders(word: str) -> tuple[Contender, ...]:
    """Return the contenders of a name; of a backend or peer without a precision, all its usual ones.

    Raises `InputError`.
    """
    if ":" in word:
        return (contender(word),)
    if word in PEERS:
        return tuple(contender(f"{word}:{precision}") for precision in PEERS[word].precisions)
    if word == OURS:
        return tuple(c for backend in USUAL for c in contenders(backend))
    if word in _BACKENDS:
        return tuple(contender(f"{OURS}:{word}:{p}") for p in USUAL.get(word, ("fp32",)))
    hint = _hint(word, [OURS, *_BACKENDS, *PEERS])
    backends, peers = ", ".join(_BACKENDS), ", ".join(PEERS)
    message = f"unknown backend or peer {word!r}. Backends are {backends}; peers are {peers}.{hint}"
    raise InputError(message, argument="backend", got=word)
