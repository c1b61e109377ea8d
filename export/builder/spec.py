# ruff: noqa: RUF009 -- `_option` returns a field, which is made for each class
"""Configuration of a build: one frozen dataclass. The command line and `--config build.toml` are projections of it.

This module parses values. It fills in nothing that needs the model, and starts no work.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from calotype.backends import ON_GPU
from calotype.errors import InputError
from calotype.plan.profile import Range, range_from_text

from ..fit.spec import fit_spec_from
from ..quality.bounds import QualityBound, parse_bounds

BACKENDS = ("onnxruntime", "openvino", *ON_GPU)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "auto")
WEIGHTS = ("int8", "int4")
PROOFS = ("small", "full")


def _range(value: Any) -> Range | None:
    return None if value is None else range_from_text(str(value))


def _int(value: Any) -> int | None:
    try:
        if isinstance(value, (bool, float)):
            raise ValueError
        return None if value is None else int(value)
    except ValueError:
        raise InputError(f"expected an integer, got {value!r}") from None


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"expected true or false, got {value!r}")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, (str, Path)):
        raise InputError(f"expected a text, got {value!r}")
    return None if value is None else str(value)


def _path(value: Any) -> Path | None:
    return None if (text := _text(value)) is None else Path(text)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise InputError(f"expected a text or a list of texts, got {value!r}")
    return tuple(value)


def _bounds(value: Any) -> tuple[QualityBound, ...]:
    return parse_bounds(_texts(value))


def _fits(value: Any) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        fit_spec_from(text)
    return texts


def _option(parse: Callable[[Any], Any], help_text: str, default: Any = MISSING, short: str = "") -> Any:
    """Return a field. `parse` converts a text of the command line or a value of TOML; it raises `InputError`."""
    return field(default=default, metadata={"parse": parse, "help": help_text, "short": short})


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """Configuration of one build. Sizes are ranges of pixels or images; None is the model's own range."""

    model: str = _option(_text, "demo, a folder in diffusers' layout, a .safetensors checkpoint, or a hub id.")
    output: Path = _option(_path, "The plan's folder.", short="-o")
    backend: str = _option(_text, f"One of {', '.join(BACKENDS)}.", "onnxruntime")
    precision: str = _option(_text, f"One of {', '.join(PRECISIONS)}.", "fp32")
    weights: str | None = _option(
        _text, "int8 or int4: quantize only the weights, to save memory; compute in float32.", None
    )
    height: Range | None = _option(_range, "Pixels: one size, or min:opt:max.", None)
    width: Range | None = _option(_range, "Pixels: one size, or min:opt:max.", None)
    batch: Range | None = _option(_range, "Images per call: one number, or min:opt:max.", None)
    frames: Range | None = _option(_range, "Frames of a clip, of a video model: one number, or min:opt:max.", None)
    controlnet: tuple[str, ...] = _option(_texts, "A ControlNet's folder, file or hub id; repeatable.", ())
    ip_adapter: tuple[str, ...] = _option(_texts, "An IP-Adapter's file; repeatable.", ())
    image_encoder: str | None = _option(_text, "The folder of the IP-Adapters' image encoder.", None)
    t2i_adapter: tuple[str, ...] = _option(_texts, "A T2I-Adapter's folder, file or hub id; repeatable.", ())
    motion_adapter: str | None = _option(_text, "Motion modules: a folder, file or hub id; the plan makes clips.", None)
    style_aligned: bool = _option(_bool, "A U-Net for images of one style (Style Aligned).", False)
    pag: bool = _option(_bool, "A U-Net for perturbed attention guidance (PAG).", False)
    lora: tuple[str, ...] = _option(_texts, "FILE or FILE:SCALE, fused into the weights; repeatable.", ())
    vae: str | None = _option(_text, "An autoencoder's folder, file or hub id, in place of the model's.", None)
    unet: str | None = _option(_text, "A U-Net's folder, file or hub id, in place of the model's.", None)
    textual_inversion: tuple[str, ...] = _option(
        _texts, "A file of learned embeddings, as FILE or FILE:<word>; repeatable.", ()
    )
    offline: bool = _option(_bool, "Make no connection: read hub ids from the cache.", False)
    engine: tuple[str, ...] = _option(
        _texts, "TensorRT options: refit, exact, plugin, level=, chunks= and others; repeatable.", ()
    )
    max_loss: tuple[QualityBound, ...] = _option(
        _bounds,
        "Quality bounds: psnr>=30, ssim>=0.95, lpips<=0.1, clip_drop<=, judge_drop<=.",
        (QualityBound(metric="psnr", limit=30.0),),
    )
    fallback: bool = _option(_bool, "Also keep float32, for values that overflow.", False)
    prompts: Path | None = _option(_path, "A file with one prompt per line.", None)
    calibration: int = _option(_int, "Number of images that calibrate int8 and fp8.", 16)
    prove: str = _option(_text, "small or full: check with small images, or with images of the plan's size.", "small")
    proof: int | None = _option(_int, "Images of the end-to-end check.  [default: fp32 1, half 2, int8 8]", None)
    proof_steps: int | None = _option(_int, "Steps of the end-to-end check.  [default: fp32 and half 4, int8 20]", None)
    clip_model: Path | None = _option(_path, "A CLIP model's folder, for clip_drop.", None)
    scheduler: tuple[str, ...] = _option(_texts, "More schedulers to compile; repeatable.", ())
    fit: tuple[str, ...] = _option(
        _fits, "SCHEDULER:STEPS:CALLS, as euler:20:10: fit a sampler with fewer network calls; repeatable.", ()
    )
    steps: Range = _option(_range, "Step counts to compile samplers for.", Range(min=1, opt=20, max=50))

    def __post_init__(self) -> None:
        for name in ("output", "prompts", "clip_model"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name, known in (("backend", BACKENDS), ("precision", PRECISIONS), ("prove", PROOFS)):
            if getattr(self, name) not in known:
                expected = f"one of {', '.join(known)}"
                message = f"unknown {name} {getattr(self, name)!r}; expected {expected}."
                raise InputError(message, argument=name, got=getattr(self, name), expected=expected)
        if self.weights not in (None, *WEIGHTS) or (self.weights and self.precision != "fp32"):
            raise InputError(
                f"cannot build with weights {self.weights!r} and precision {self.precision!r}: expected weights "
                f"{' or '.join(WEIGHTS)} with --precision fp32.",
                argument="weights",
                got=self.weights,
            )
        for name, limit in (("calibration", 4096), ("proof", 4096), ("proof_steps", 1000)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise InputError(f"{name} must be from 1 to {limit}, got {value}.", argument=name, got=value)

    @property
    def gated(self) -> bool:
        """Whether the precision is below float32, so that the bounds of `max_loss` apply."""
        return self.precision != "fp32" or self.weights is not None

    @property
    def proof_counts(self) -> tuple[int, int]:
        """Number of images and steps of the end-to-end check."""
        images, steps = (2, 4) if self._brief else (8, 20) if self.gated else (1, 4)
        return self.proof or images, self.proof_steps or steps

    @property
    def calibration_counts(self) -> tuple[int, int]:
        """Number of images and steps that show the ranges of numbers."""
        if not self.gated:
            return 0, 0
        return (min(4, self.calibration), 10) if self._brief else (self.calibration, 20)

    @property
    def _brief(self) -> bool:
        """Whether few small images show what there is to see: half precision has no bounds to search for."""
        return self.precision in ("bf16", "fp16") and self.prove == "small"

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as the command line writes them."""
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                plain = value if isinstance(value, (bool, int)) else str(value)
                values[f.name] = [str(v) for v in value] if isinstance(value, tuple) else plain
        return values

    def command(self) -> str:
        """Return the command line of this build, without the output folder."""
        words = ["calotype", "build", self.model]
        for name, value in self.to_json().items():
            if name not in ("model", "output"):
                for one in value if isinstance(value, list) else [value]:
                    words += [flag_of(name)] if one is True else [flag_of(name), str(one)]
        return shlex.join(words)


def flag_of(name: str) -> str:
    """Return the command-line option of a field: proof_steps is --proof-steps."""
    return "--" + name.replace("_", "-")


def spec_from(values: Mapping[str, Any]) -> BuildSpec:
    """Return the spec for texts of the command line or values of TOML. Raise `InputError` if one is invalid."""
    known = {f.name: f for f in fields(BuildSpec)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        message = f"unknown build option {', '.join(unknown)}; expected one of {', '.join(known)}."
        raise InputError(message, argument=unknown[0])
    for name in ("model", "output"):
        if values.get(name) in (None, ""):
            example = "calotype build MODEL -o PLAN"
            message = f"missing {name}: pass the model and the output folder, as in: {example}"
            raise InputError(message, argument=name)
    parsed = {}
    for name, value in values.items():
        try:
            parsed[name] = known[name].metadata["parse"](value)
        except (TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, InputError) else f"got {value!r}"
            raise InputError(f"{flag_of(name)}: {reason}", argument=name, got=value) from None
    return BuildSpec(**parsed)


def read_config(path: Path) -> dict[str, Any]:
    """Read the fields of a build from a TOML file. Names may use - or _; paths are relative to the working folder."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", argument="config", got=str(path)) from None
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}.", argument="config", got=str(path)) from None
    return {key.replace("-", "_"): value for key, value in values.items()}
