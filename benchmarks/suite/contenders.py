"""Who runs a case: a backend of ours in some precision, or a peer. Data, and the words that name them.

A contender's name is MAKER[:BACKEND]:PRECISION: "calotype:openvino:bf16", "diffusers:fp32". Backends and precisions of
ours need no list here: what a plan can be built for is known to `calotype.export`. One of ours may have a variant
behind: "calotype:openvino:bf16:without=kept_inputs" leaves a piece of work undone (`vino_rewrites.WITHOUT`), and
"...:cache_interval=3" or "...:guidance_interval=0.2-0.8" paints with less work than the whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calotype.backends import NAMES
from calotype.backends.openvino.rewrites import PIECES
from calotype.errors import InputError
from calotype.export.builder.spec import BACKENDS, PRECISIONS

OURS = "calotype"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A rival: the folder of its environment and worker, and what it is told beside the job."""

    folder: str
    precisions: tuple[str, ...]
    device: str = "cpu"  # "cpu", "cuda", or "any": the device of the run
    settings: Mapping[str, Any] = field(default_factory=dict)


PEERS: Mapping[str, Peer] = {
    "diffusers": Peer(folder="diffusers", precisions=("fp32", "bf16", "fp16"), device="any"),
    "torch-compile": Peer(
        folder="diffusers", precisions=("fp32", "bf16", "fp16"), device="any", settings={"compile": True}
    ),
    "optimum": Peer(folder="optimum", precisions=("fp32",), settings={"provider": "CPUExecutionProvider"}),
    "openvino-genai": Peer(folder="openvino_genai", precisions=("fp32", "bf16", "int8")),
    "stable-diffusion.cpp": Peer(folder="stable_diffusion_cpp", precisions=("fp16",)),
    "onnxruntime-cuda": Peer(
        folder="onnxruntime_cuda",
        precisions=("fp32",),
        device="cuda",
        settings={"provider": "CUDAExecutionProvider"},
    ),
    "tensorrt": Peer(
        folder="tensorrt",
        precisions=("fp32", "fp16"),
        device="cuda",
        settings={"provider": "TensorrtExecutionProvider"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of them, in one precision. `settings` go to its worker as they are."""

    maker: str
    backend: str  # ours: the backend; a peer's: its own name
    precision: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""  # of ours: "without=kept_inputs", "cache_interval=3"

    @property
    def name(self) -> str:
        """As people write it, and as rows are matched."""
        words = [self.maker, self.backend, self.precision] if self.is_ours else [self.maker, self.precision]
        return ":".join([*words, self.variant] if self.variant else words)

    @property
    def is_ours(self) -> bool:
        """Is it Calotype itself?"""
        return self.maker == OURS


def contender(name: str) -> Contender:
    """From its name. Raises `InputError` with the nearest known ones."""
    maker, *rest = name.strip().split(":")
    if maker == OURS and len(rest) in (2, 3) and rest[0] in {*NAMES, *BACKENDS} and _known(rest[1]):
        variant = "".join(rest[2:])
        return Contender(
            maker=maker,
            backend=rest[0],
            precision=rest[1],
            variant=variant,
            settings=_varied(variant) if variant else {},
        )
    if maker in PEERS and len(rest) == 1 and rest[0] in PEERS[maker].precisions:
        return Contender(maker=maker, backend=maker, precision=rest[0], settings=PEERS[maker].settings)
    near = difflib.get_close_matches(name, known_names(), n=3)
    hint = f" The nearest: {', '.join(near)}." if near else ""
    raise InputError(f"there is no contender {name!r}; write calotype:BACKEND:PRECISION or PEER:PRECISION.{hint}")


def _varied(variant: str) -> dict[str, Any]:
    """What a worker of ours is told of a variant. Raises `InputError`."""
    name, _, value = variant.partition("=")
    try:
        if name == "without" and (value == "all" or set(value.split("+")) <= set(PIECES)):
            return {"without": list(PIECES) if value == "all" else value.split("+")}
        if name == "cache_interval":
            return {"arguments": {name: int(value)}}
        if name == "guidance_interval":
            start, end = map(float, value.split("-"))
            return {"arguments": {name: [start, end]}}
    except ValueError:
        pass
    raise InputError(
        f"there is no variant {variant!r}; write without=all, without=PIECE+PIECE of {', '.join(PIECES)}, "
        "cache_interval=3 or guidance_interval=0.2-0.8."
    )


def contenders(word: str) -> tuple[Contender, ...]:
    """From a name, or from a backend or peer alone: all its usual precisions. Raises `InputError`."""
    if ":" in word:
        return (contender(word),)
    if word in PEERS:
        return tuple(contender(f"{word}:{precision}") for precision in PEERS[word].precisions)
    if word in {*NAMES, *BACKENDS}:
        return tuple(contender(f"{OURS}:{word}:{p}") for p in USUAL.get(word, ("fp32",)))
    if word == OURS:
        return tuple(contender(f"{OURS}:{b}:{p}") for b, usual in USUAL.items() for p in usual)
    near = difflib.get_close_matches(word, [OURS, *NAMES, *BACKENDS, *PEERS], n=3)
    hint = f" The nearest: {', '.join(near)}." if near else ""
    ours, peers = ", ".join(dict.fromkeys([*NAMES, *BACKENDS])), ", ".join(PEERS)
    raise InputError(f"there is no backend or peer {word!r}; backends are {ours}, peers are {peers}.{hint}")


# The precisions of our backends that are worth a row where nothing else is said.
USUAL: Mapping[str, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16", "auto"),
    "onnxruntime": ("fp32", "auto"),
    "eager": ("fp32",),
    "tensorrt": ("fp16", "fp8"),
    "cuda": ("fp16", "bf16"),
    "onnxruntime-cuda": ("fp16",),
}


def _known(precision: str) -> bool:
    return precision in PRECISIONS


def known_names() -> list[str]:
    """Every contender that has a name here."""
    ours = [f"{OURS}:{backend}:{p}" for backend in {*NAMES, *BACKENDS} for p in PRECISIONS]
    return [*ours, *(f"{maker}:{p}" for maker, peer in PEERS.items() for p in peer.precisions)]
