"""What a build is told: one frozen dataclass. The command line and `--config build.toml` are projections of it.

Says what the words mean, fills in nothing that needs the model, and starts nothing.
"""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from calotype.backends import ON_GPU
from calotype.errors import InputError
from calotype.plan.profile import Range, range_from_text

from ..quality.bounds import Bound, parse_bounds

BACKENDS = ("onnxruntime", "openvino", *ON_GPU)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "auto")
WEIGHTS = ("int8", "int4")


def _said(help_text: str, short: str = "") -> dict[str, str]:
    return {"help": help_text, "short": short}


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """One build. Sizes are ranges of pixels or pictures; None is what the model itself allows."""

    model: str = field(metadata=_said("demo, a folder in diffusers' layout, a .safetensors checkpoint, or a hub id."))
    output: Path = field(metadata=_said("The plan's folder.", "-o"))
    backend: str = field(default="onnxruntime", metadata=_said(f"One of {', '.join(BACKENDS)}."))
    precision: str = field(default="fp32", metadata=_said(f"One of {', '.join(PRECISIONS)}."))
    weights: str | None = field(
        default=None, metadata=_said("int8 or int4: weights alone, arithmetic in float32, where memory is short.")
    )
    height: Range | None = field(default=None, metadata=_said("Pixels: one size, or min:opt:max."))
    width: Range | None = field(default=None, metadata=_said("Pixels: one size, or min:opt:max."))
    batch: Range | None = field(default=None, metadata=_said("Pictures at once: one number, or min:opt:max."))
    controlnet: tuple[str, ...] = field(
        default=(), metadata=_said("A ControlNet's folder, file or hub id; repeatable.")
    )
    lora: tuple[str, ...] = field(default=(), metadata=_said("FILE or FILE:SCALE, fused into the weights; repeatable."))
    vae: str | None = field(
        default=None, metadata=_said("An autoencoder's folder, file or hub id, in place of the model's.")
    )
    textual_inversion: tuple[str, ...] = field(
        default=(), metadata=_said("A file of learned words, as FILE or FILE:<word>; may be repeated.")
    )
    offline: bool = field(default=False, metadata=_said("Make no connection: hub ids are looked for in the cache."))
    engine: tuple[str, ...] = field(
        default=(),
        metadata=_said("Of TensorRT: refit, exact, plugin, level=, chunks= and others; repeatable."),
    )
    max_loss: tuple[Bound, ...] = field(
        default=(Bound(metric="psnr", limit=30.0),),
        metadata=_said("The gate of a lower precision: psnr>=30, ssim>=0.95, lpips<=0.1, clip_drop<=, judge_drop<=."),
    )
    fallback: bool = field(default=False, metadata=_said("Keep float32 beside a lower precision, for numbers too big."))
    prompts: Path | None = field(default=None, metadata=_said("A file of prompts, one a line."))
    calibration: int = field(default=16, metadata=_said("Pictures that int8 and fp8 are calibrated on."))
    proof: int | None = field(default=None, metadata=_said("Pictures of the end-to-end check.  [default: 1, gated: 8]"))
    proof_steps: int | None = field(default=None, metadata=_said("Steps of each of them.  [default: 4, gated: 20]"))
    clip_model: Path | None = field(default=None, metadata=_said("A CLIP model's folder, for clip_drop."))
    scheduler: tuple[str, ...] = field(default=(), metadata=_said("Samplers to keep besides the model's; repeatable."))
    steps: Range = field(
        default=Range(min=1, opt=20, max=50), metadata=_said("Step counts whose sampler matrices are kept.")
    )

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}.")
        if self.weights not in (None, *WEIGHTS) or (self.weights and self.precision != "fp32"):
            raise InputError(f"weights are {' or '.join(WEIGHTS)}, with --precision fp32; got {self.weights!r}.")
        for name, least, most in (("calibration", 1, 4096), ("proof", 1, 4096), ("proof_steps", 1, 1000)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} must be from {least} to {most}, got {value}.")

    @property
    def gated(self) -> bool:
        """Is the precision below float32, and so to be held to `max_loss`?"""
        return self.precision != "fp32" or self.weights is not None

    @property
    def proof_counts(self) -> tuple[int, int]:
        """Pictures and steps of the end-to-end check."""
        pictures, steps = (8, 20) if self.gated else (1, 4)
        return self.proof or pictures, self.proof_steps or steps

    def to_json(self) -> dict[str, Any]:
        """As plain data in the words of the command line; what was not said is left out."""
        said = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                said[f.name] = [str(v) for v in value] if isinstance(value, tuple) else _plain(value)
        return said

    def command(self) -> str:
        """The command line that makes this build, but for where the plan goes."""
        words = ["calotype", "build", self.model]
        for name, value in self.to_json().items():
            flag = flag_of(name)
            if name in ("model", "output"):
                continue
            if value is True:
                words.append(flag)
                continue
            for one in value if isinstance(value, list) else [value]:
                words += [flag, str(one)]
        return shlex.join(words)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int)) else str(value)


def flag_of(name: str) -> str:
    """The option of a field: proof_steps is --proof-steps."""
    return "--" + name.replace("_", "-")


def spec_from(said: Mapping[str, Any]) -> BuildSpec:
    """A spec from words (of the command line) or TOML's values. Raises `InputError`."""
    known = {f.name: f for f in fields(BuildSpec)}
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise InputError(f"a build knows no {', '.join(unknown)}; it takes {', '.join(known)}.")
    for name in ("model", "output"):
        if said.get(name) in (None, ""):
            raise InputError(f"say {'which model to build' if name == 'model' else 'where the plan goes (-o PLAN)'}.")
    return BuildSpec(**{name: _value(name, value) for name, value in said.items()})


def _value(name: str, given: Any) -> Any:
    kind = _KINDS[name]
    try:
        return kind(given)
    except (TypeError, ValueError) as wrong:
        told = str(wrong) if isinstance(wrong, InputError) else f"got {given!r}"
        raise InputError(f"{flag_of(name)}: {told}") from None


def _range(given: Any) -> Range | None:
    return None if given is None else range_from_text(str(given))


def _whole(given: Any) -> int | None:
    if isinstance(given, (bool, float)):
        raise InputError(f"it takes a whole number, got {given!r}")
    try:
        return None if given is None else int(given)
    except ValueError:
        raise InputError(f"it takes a whole number, got {given!r}") from None


def _bool(given: Any) -> bool:
    if not isinstance(given, bool):
        raise InputError(f"it is true or false, got {given!r}")
    return given


def _texts(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Sequence) or not all(isinstance(g, str) for g in given):
        raise InputError(f"it takes text, or a list of texts, got {given!r}")
    return tuple(given)


def _text(given: Any) -> str:
    if not isinstance(given, (str, Path)):
        raise InputError(f"it takes text, got {given!r}")
    return str(given)


def _optional(given: Any) -> str | None:
    return None if given is None else _text(given)


def _path(given: Any) -> Path | None:
    return None if given is None else Path(_text(given))


def _bounds(given: Any) -> tuple[Bound, ...]:
    return parse_bounds(_texts(given))


_KINDS: dict[str, Callable[[Any], Any]] = {
    **{
        "model": _text,
        "output": _path,
        "backend": _text,
        "precision": _text,
        "weights": _optional,
        "vae": _optional,
        "offline": _bool,
        "steps": _range,
        "fallback": _bool,
    },
    **dict.fromkeys(("height", "width", "batch"), _range),
    **dict.fromkeys(("controlnet", "lora", "scheduler", "textual_inversion", "engine"), _texts),
    **dict.fromkeys(("calibration", "proof", "proof_steps"), _whole),
    **dict.fromkeys(("prompts", "clip_model"), _path),
    "max_loss": _bounds,
}


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a build from a TOML file, with - or _ in their names; paths mean what they mean in the shell."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as failed:
        raise InputError(f"{path} cannot be read ({failed.strerror}).") from None
    except ValueError as broken:
        raise InputError(f"{path} is not TOML ({broken}).") from None
    known = {f.name for f in dataclasses.fields(BuildSpec)}
    return {(key.replace("-", "_") if key.replace("-", "_") in known else key): value for key, value in said.items()}
