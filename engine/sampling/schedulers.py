"""Schedulers by name: each name's diffusers class and configuration.

A `SchedulerSpec` is plain data. Creating one imports neither torch nor diffusers, so a process that reads its sampler
matrix from a file needs neither. This file does not know what a scheduler does: `calotype.sampling.compile` creates it
from a spec and compiles it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import re
import uuid
import warnings
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import SamplerError
from ..plan.config_fields import check_scheduler_config
from .schedule_range import FULL_SCHEDULE, ScheduleRange

if TYPE_CHECKING:
    from collections.abc import Mapping

SchedulerLike: TypeAlias = Any
"""A name, a class of diffusers, a scheduler of diffusers, a `SchedulerSpec`, or None for the model's own."""

FORMAT: Final = 1  # raise it when the same spec compiles to another matrix
_FORMATS: Final = {"TCDScheduler": 2}  # of classes whose matrix alone has changed: without eta=, its eta is 0

_SIGMAS: Final = ("karras", "exponential", "beta")
_MULTISTEP: Final = {"algorithm_type": "dpmsolver++", "solver_order": 2}

# name: (class of diffusers, configuration that the name implies, whether -karras, -exponential or -beta may follow)
_NAMES: Final[Mapping[str, tuple[str, Mapping[str, Any], bool]]] = {
    "ddim": ("DDIMScheduler", {}, False),
    "ddpm": ("DDPMScheduler", {}, False),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}, True),
    "dpm++2m": ("DPMSolverMultistepScheduler", _MULTISTEP, True),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}, True),
    # Without lower_order_final the class flips the flag itself, with a warning, for every odd number of steps.
    "dpm++2s": ("DPMSolverSinglestepScheduler", {**_MULTISTEP, "lower_order_final": True}, True),
    "dpm++sde": ("DPMSolverSDEScheduler", {}, True),
    "euler": ("EulerDiscreteScheduler", {}, True),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}, False),
    "heun": ("HeunDiscreteScheduler", {}, True),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, True),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}, True),
    "lcm": ("LCMScheduler", {}, False),
    "lms": ("LMSDiscreteScheduler", {}, True),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, False),
    "sa-solver": ("SASolverScheduler", {"algorithm_type": "data_prediction"}, True),
    "tcd": ("TCDScheduler", {}, False),
    "unipc": ("UniPCMultistepScheduler", {}, True),
}
# Names of other programs; a suffix may follow those that take one.
_ALIASES: Final = {
    **{"euler-ancestral": "euler-a", "kdpm2-ancestral": "kdpm2-a", "dpm2-ancestral": "kdpm2-a", "plms": "pndm"},
    **{f"dpm2{more}": f"kdpm2{more}" for end in ("", *(f"-{s}" for s in _SIGMAS)) for more in (end, f"-a{end}")},
}

_WITH_ETA: Final = ("DDIMScheduler", "DDIMParallelScheduler", "TCDScheduler")
# Latents have no bounds to clip to; the classes' default of True is for pixels.
_LATENTS: Final = {"clip_sample": False}
# The training configuration of SD 1, SD 2 and SDXL: the default without a model's own.
_STABLE_DIFFUSION: Final = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"steps_offset": 1, "set_alpha_to_one": False},
}
_BETAS: Final = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
)


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """A scheduler as plain data.

    Attributes:
        name: The name in reports: "euler-karras", or the name of the class.
        class_name: The class of diffusers, for example "EulerDiscreteScheduler".
        config: Arguments of the class. Unknown ones are ignored.
        by_hand: Empty, or the part of the scheduler that these data do not describe. Then only the scheduler object can
            be compiled, every fingerprint is different, and the matrix is not cached.
    """

    name: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    by_hand: str = ""

    def to_json(self) -> str:
        """Return one line of JSON, for a manifest."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SchedulerSpec:
        """Read the spec that `to_json` wrote.

        Raises:
            SamplerError: The text is not such a spec.
        """
        try:
            spec = cls(**json.loads(text))
            check_scheduler_config(spec.config, "config")
        except (TypeError, ValueError, RecursionError):
            spec = None
        # The text may come from an untrusted image: it may name a scheduler and nothing else.
        words = () if spec is None else (spec.name, spec.class_name, spec.by_hand)
        plain = spec is not None and all(isinstance(word, str) for word in words) and isinstance(spec.config, dict)
        if spec is None or not plain or not spec.class_name.endswith("Scheduler"):
            raise SamplerError(f"Cannot read the scheduler: got {text[:80]!r}; expected one written by calotype.")
        return spec

    def key(self) -> str:
        """Return a hash of the class and configuration, without the name, as 64 hexadecimal digits.

        It identifies a plan's matrices, and does not depend on diffusers, which need not be installed.
        """
        return self._digest({})

    def fingerprint(self, steps: int, schedule_range: ScheduleRange = FULL_SCHEDULE) -> str:
        """Return the key of the compiled matrix in the cache: a sha256 as 64 hexadecimal digits.

        It covers the class, its configuration, the steps and their range, the versions of diffusers and of the
        compiler, but not the name. It imports neither torch nor diffusers.
        """
        version = _diffusers_version()
        return self._digest({"steps": steps, "diffusers": version, **schedule_range.key()})

    def _digest(self, more: Mapping[str, Any]) -> str:
        content = asdict(self) | {"format": _FORMATS.get(self.class_name, FORMAT)} | dict(more)
        if self.by_hand:
            content["by_hand"] = str(uuid.uuid4())
        del content["name"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def scheduler_names() -> tuple[str, ...]:
    """List the schedulers by name.

    Returns:
        Every name that `scheduler=` and `calotype generate --scheduler` accept, sorted, without aliases. Names are
        accepted in any spelling: "DPM++ 2M Karras" is "dpm++2m-karras".
    """
    with_sigmas = [f"{name}-{sigmas}" for name, entry in _NAMES.items() if entry[2] for sigmas in _SIGMAS]
    return tuple(sorted([*_NAMES, *with_sigmas]))


def takes_eta(scheduler: SchedulerLike, base_config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's steps take `eta`. Raises `SamplerError` as `spec_from`."""
    if hasattr(scheduler, "step"):  # an object, or a class
        return "eta" in inspect.signature(scheduler.step).parameters
    return spec_from(scheduler, base_config).class_name in _WITH_ETA


def spec_from(scheduler: SchedulerLike = None, base_config: Mapping[str, Any] | None = None) -> SchedulerSpec:
    """Return the spec of a scheduler.

    Args:
        scheduler: A name of `scheduler_names()` in any spelling ("DPM++ 2M Karras" works); a class of diffusers or its
            name; a scheduler object, which is used unchanged; a spec; or None for the model's own.
        base_config: The model's `scheduler_config.json`. Betas, prediction type and timestep spacing come from it, as
            in `Class.from_config(base_config)`. The default is Stable Diffusion's.

    Raises:
        SamplerError: The name or the type is unknown.
    """
    if isinstance(scheduler, SchedulerSpec):
        return scheduler
    if scheduler is None:
        scheduler = (base_config or {}).get("_class_name", "ddim")
    if isinstance(scheduler, str):
        return _from_name(scheduler, base_config)
    if isinstance(scheduler, type):
        by_hand = "" if _is_diffusers(scheduler) else _FOREIGN
        return SchedulerSpec(
            name=scheduler.__name__, class_name=scheduler.__name__, config=_base(base_config), by_hand=by_hand
        )
    if hasattr(scheduler, "config") and hasattr(scheduler, "set_timesteps"):
        return _from_object(scheduler)
    raise SamplerError(f"Invalid scheduler: got {scheduler!r}; expected a name, a class or a scheduler of diffusers.")


def _from_name(name: str, base_config: Mapping[str, Any] | None) -> SchedulerSpec:
    if name.endswith("Scheduler") and name.isidentifier():
        return SchedulerSpec(name=name, class_name=name, config=_base(base_config))
    known = {_squeezed(full): full for full in (*scheduler_names(), *_ALIASES)}
    full = known.get(_squeezed(name))
    if full is None:
        near = [known[key] for key in difflib.get_close_matches(_squeezed(name), known, n=3, cutoff=0.5)]
        nearest = f" The nearest: {', '.join(near)}." if near else ""
        suffixed = ", ".join(word for word, entry in _NAMES.items() if entry[2])
        raise SamplerError(
            f"There is no scheduler called {name!r}.{nearest} Known names: {', '.join(sorted(_NAMES))}."
            f" These also take -karras, -exponential or -beta: {suffixed}.",
            scheduler=name,
        )
    full = _ALIASES.get(full, full)
    head, _, sigmas = full.rpartition("-")
    if sigmas not in _SIGMAS:
        head, sigmas = full, ""
    class_name, implied, _ = _NAMES[head]
    # A suffix disables the two other schedules, which the model's config may set: a class takes one at most.
    flags = {f"use_{word}_sigmas": word == sigmas for word in _SIGMAS} if sigmas else {}
    return SchedulerSpec(name=full, class_name=class_name, config={**_base(base_config), **implied, **flags})


_FOREIGN = "its class is not from diffusers"


def _from_object(scheduler: Any) -> SchedulerSpec:
    kind: Any = type(scheduler)
    config: dict[str, Any] = {}
    by_hand = "" if _is_diffusers(kind) else _FOREIGN
    for key, value in scheduler.config.items():
        try:
            config |= {} if key.startswith("_") else {key: _plain(value)}
        except TypeError:
            by_hand = f"its {key} is a {type(value).__name__}"
    if not by_hand and hasattr(scheduler, "alphas_cumprod"):
        # The configuration does not show betas that were replaced in the object, as some do for a zero signal.
        expected = _alphas(kind, json.dumps({key: config[key] for key in _BETAS if key in config}))
        by_hand = "" if scheduler.alphas_cumprod.tolist() == expected else "its alphas_cumprod was replaced"
    return SchedulerSpec(name=kind.__name__, class_name=kind.__name__, config=config, by_hand=by_hand)


@functools.lru_cache(maxsize=32)  # creating some schedulers takes half a second
def _alphas(kind: Any, betas: str) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alphas: list[float] = kind(**json.loads(betas)).alphas_cumprod.tolist()
    return alphas


def _base(base_config: Mapping[str, Any] | None) -> dict[str, Any]:
    if base_config is None:
        return {**_LATENTS, **_STABLE_DIFFUSION}
    # As in `from_config`: values that the model did not set get the default of the new class.
    defaults = base_config.get("_use_default_values")
    defaults = defaults if isinstance(defaults, (list, tuple)) else ()
    config = {key: value for key, value in base_config.items() if key not in defaults and not key.startswith("_")}
    try:
        return {**_LATENTS, **_plain(config)}
    except TypeError as error:
        raise SamplerError(f"Cannot write the model's scheduler configuration as JSON: {error}.") from None


def _plain(value: Any) -> Any:
    """Return the value after a round trip through JSON, with arrays as lists. TypeError if JSON cannot store it."""

    def listed(value: Any) -> Any:
        if hasattr(value, "tolist"):  # an array of numpy, a tensor of torch
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not plain data")

    return json.loads(json.dumps(value, default=listed))


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower()).replace("dpmpp", "dpm++")


def _is_diffusers(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "diffusers"


def _diffusers_version() -> str:
    try:
        return metadata.version("diffusers")
    except metadata.PackageNotFoundError:
        return "none"
