"""The cases of the benchmark suite as data, and how users write them. Nothing here runs anything.

A *case* is a piece of work that is the same for every contender: the model, the task, the size, the steps, the sampler.
`--case "model=sd15 height=512 width=512 steps=4"` describes one.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from calotype.errors import InputError, SamplerError
from calotype.sampling.schedulers import spec_from

from .contenders import OURS, PEERS, Contender, contenders

TASKS = ("text-to-image",)
DEVICES = ("cpu", "cuda")
# Prompts for random weights, which give words no meaning: single letters have the same token ids in every CLIP
# vocabulary, including those inside the peers.
_LETTERS = ("a b c d", "e f g h i j", "k l m", "n o p q r s t u", "v w x", "y z a c", "b d f h", "g i k m o")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work. `height` and `width` are pixels; a guidance of 1 or less turns guidance off.

    Attributes:
        model: demo, one of `models.MODELS` (full-size, random weights), or a folder in diffusers' layout.
        sampler: a name of `calotype.scheduler_names()`, or "own" for the model's.
        controlnets: folders, or "random": one of the model's own shape with random weights.
        prompts: the number of different prompts (and seeds) that the rounds cycle through.
        rounds: the maximum; six always run, because an interval needs them, whatever `budget_s` is.
        budget_s: seconds after which no further round starts.
    """

    model: str = "demo"
    task: str = "text-to-image"
    height: int = 128
    width: int = 128
    device: str = "cpu"
    batch: int = 1
    steps: int = 20
    sampler: str = "euler"
    guidance: float = 5.0
    controlnets: tuple[str, ...] = ()
    prompts: int = 4
    rounds: int = 20
    budget_s: float = 60.0
    contenders: tuple[Contender, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in {"task": TASKS, "device": DEVICES}.items():
            if getattr(self, name) not in allowed:
                message = f"a case's {name} is {' or '.join(allowed)}; got {getattr(self, name)!r}."
                raise InputError(message, argument=name, got=getattr(self, name))
        for name in ("height", "width", "batch", "steps", "prompts", "rounds"):
            if getattr(self, name) < 1:
                message = f"a case's {name} must be 1 or more; got {getattr(self, name)}."
                raise InputError(message, argument=name, got=getattr(self, name))
        for name in ("guidance", "budget_s"):
            if not math.isfinite(getattr(self, name)):
                message = f"a case's {name} must be a finite number; got {getattr(self, name)}."
                raise InputError(message, argument=name, got=getattr(self, name))
        if not self.model:
            message = "a case's model is demo, the name of a full-size model, or a folder; got an empty name."
            raise InputError(message, argument="model", got=self.model)
        if self.rounds < 6:
            message = f"a case needs 6 rounds or more for an interval; got {self.rounds}."
            raise InputError(message, argument="rounds", got=self.rounds)
        try:
            if self.sampler != "own":
                spec_from(self.sampler, {})
        except SamplerError as error:
            raise InputError(f"a case's sampler: {error}", argument="sampler", got=self.sampler) from None

    @property
    def id(self) -> str:
        """A short name that is the same for the same work. It matches the rows of two runs."""
        model, control = _short(self.model), "".join(f"-controlnet-{_short(net)}" for net in self.controlnets)
        size = f"{self.width}" if self.width == self.height else f"{self.width}x{self.height}"
        guidance = f"g{self.guidance:g}" if self.guided else "unguided"
        device = "" if self.device == "cpu" else f"-{self.device}"
        return f"{model}-{size}-{self.steps}x{self.sampler}-{guidance}-b{self.batch}{control}{device}"

    @property
    def guided(self) -> bool:
        """Whether the U-Net runs on every image twice."""
        return self.guidance > 1

    @property
    def judged(self) -> bool:
        """Whether the demonstration model's judge can read the prompts."""
        return self.model == "demo"

    def to_json(self) -> dict[str, Any]:
        """Return the work as plain data, without the contenders and the number of rounds."""
        left_out = ("prompts", "rounds", "budget_s", "contenders")
        return {n: list(v) if isinstance(v, tuple) else v for n, v in vars(self).items() if n not in left_out}


def _short(model: str) -> str:
    """Return the name of the model; for a folder, its last part and a digest of the path, to separate equal names."""
    last = model.rstrip("/").rpartition("/")[2]
    return last if last == model else f"{last}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"


def prompts_of(case: Case) -> list[str]:
    """Return the fixed prompts of the case: captions that the training never saw, or letters for random weights."""
    if case.judged:
        from calotype.export.judge.scenes import held_out_captions

        singles, pairs = (held_out_captions(things, case.prompts, seed=500) for things in (1, 2))
        return [(singles if i % 2 else pairs)[i // 2] for i in range(case.prompts)]
    return [_LETTERS[i % len(_LETTERS)] for i in range(case.prompts)]


# Names of `--case`, and what makes a value of their text.
_KINDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("height", "width", "size", "batch", "steps", "prompts", "rounds"), int),
    **dict.fromkeys(("guidance", "budget_s"), float),
    **dict.fromkeys(("model", "task", "sampler", "device"), str),
    **dict.fromkeys(("controlnets", "backend", "precision"), lambda text: tuple(t for t in text.split(",") if t)),
}


def case_from(text: str) -> Case:
    """Return a case from `name=value` words.

    `size=512` sets height and width; `backend=` and `precision=` name contenders. Raises `InputError` with the allowed
    words.
    """
    values: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        message = f"a case is words like model=demo steps=20; got {text!r} ({error})."
        raise InputError(message, argument="case", got=text) from None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in _KINDS:
            names = ", ".join(_KINDS)
            message = f"a case is words like model=demo steps=20; got {word!r}. The names are {names}."
            raise InputError(message, argument="case", got=word)
        try:
            values[name] = _KINDS[name](value)
        except ValueError:
            raise InputError(f"a case's {name} is a number; got {value!r}.", argument=name, got=value) from None
    if "size" in values:
        size = values.pop("size")
        values = {"height": size, "width": size} | values
    backends, precisions = values.pop("backend", ()), values.pop("precision", ())
    if precisions and not backends:
        raise InputError("precision= in a case needs backend=.", argument="precision")
    if precisions:
        makers = [word if word in PEERS else f"{OURS}:{word}" for word in backends]
        backends = [f"{maker}:{precision}" for maker in makers for precision in precisions]
    return Case(**values, contenders=named(backends))


def named(words: Iterable[str]) -> tuple[Contender, ...]:
    """Return the contenders of several words, each once."""
    return tuple({c.name: c for word in words for c in contenders(word)}.values())


def chosen(cases: tuple[Case, ...], backends: tuple[str, ...], row_filter: str) -> tuple[Case, ...]:
    """Return the cases with the contenders of `--backend`, and only the rows that contain `--filter`.

    Raises `InputError` if no row is left.
    """
    requested = [replace(case, contenders=named(backends) or case.contenders) for case in cases]
    kept = [
        replace(case, contenders=tuple(c for c in case.contenders if row_filter in f"{case.id} {c.name}"))
        for case in requested
    ]
    left = tuple(case for case in kept if case.contenders)
    ids = [case.id for case in left]
    if len(set(ids)) < len(ids):
        message = f"two cases are the same work: {max(ids, key=ids.count)}. Name each case once."
        raise InputError(message, argument="case")
    if not left:
        rows = ", ".join(f"{case.id} {c.name}" for case in requested for c in case.contenders)[:400]
        message = f"--filter {row_filter!r} matches none of the rows: {rows or 'no contenders'}."
        raise InputError(message, argument="filter", got=row_filter)
    return left
