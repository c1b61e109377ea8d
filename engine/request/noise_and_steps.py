"""The noise and the steps of a call: seeds, generators of torch or latents; a number of steps or the caller's schedule.

Knows torch only as the module that a caller with a generator has imported. Compiling the scheduler checks whether it
takes the schedule.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float, check_int
from ..images.arrays import to_array
from ..sampling.noise import MAX_SEED
from .request import Request

Floats = NDArray[np.float32]
MAX_STEPS = 1000
_MAX_SIGMA = 1e5


def seeds_of(request: Request, generators: Sequence[Any], count: int) -> tuple[int, ...]:
    """Return the seed of each of `count` images; of a generator its initial seed. Raises `InputError`."""
    if generators:
        seeds = [each.initial_seed() & MAX_SEED for each in generators]
        return tuple(seeds * count if len(seeds) == 1 else seeds)
    seed: Any = request.seed
    seed = seed.tolist() if hasattr(seed, "tolist") else seed  # an array, or a number of numpy or torch
    if seed is None:
        return tuple(secrets.randbelow(2**32) for _ in range(count))
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != count:
            raise InputError(
                f"pass one seed, or one for each of {count} images; got {len(seed)}.", argument="seed", got=len(seed)
            )
        return tuple(check_int("seed", each, 0, MAX_SEED) for each in seed)
    first = check_int("seed", seed, 0, MAX_SEED)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(count))


def generators_of(request: Request, count: int) -> tuple[Any, ...]:
    """Return no generator, one for all of `count` images, or one for each. Raises `InputError`."""
    value = request.generator
    if value is None:
        return ()
    several = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    torch = sys.modules.get("torch")
    if not several or torch is None or not all(isinstance(each, torch.Generator) for each in several):
        raise InputError(
            f"generator must be a torch.Generator, or a list of these; got {value!r:.80}. For a number, use seed=.",
            argument="generator",
            got=value,
        )
    if request.seed is not None:
        message = "seed and generator both choose the noise. Pass only one of them."
        raise InputError(message, argument="generator", got=value)
    if len(several) not in (1, count) or (isinstance(value, (list, tuple)) and len(several) != count):
        raise InputError(
            f"pass one generator, or a list with one for each of {count} images; got a list of {len(several)}.",
            argument="generator",
            got=len(several),
        )
    if len({id(each) for each in several}) != len(several):
        message = "the list has one generator several times, and each image needs its own. Pass the generator itself."
        raise InputError(message, argument="generator", got=value)
    return several


def is_seed_only(generators: Sequence[Any], count: int) -> bool:
    """Return whether the initial seeds of generators give the images again: each is new, and has its own image."""
    import torch

    if len(generators) != count or any(each.device.type != "cpu" for each in generators):
        return False
    new = (torch.Generator().manual_seed(each.initial_seed()).get_state() for each in generators)
    return all(torch.equal(each.get_state(), state) for each, state in zip(generators, new, strict=True))


def latents_argument(request: Request, middle: tuple[int, ...], count: int) -> Floats | None:
    """Return `latents` as an array: one for all of `count` images, or one for each.

    `middle` are the channels, and of a clip also its frames. Raises `InputError`.  # -> [1 or count, *middle, h, w]
    """
    if request.latents is None:
        return None
    array = to_array(request.latents)
    expected = f"an array of numbers [1 or {count}, {', '.join(map(str, middle))}, h, w]"
    is_batch = isinstance(array, np.ndarray) and array.size and array.dtype.kind in "iuf"
    if not is_batch or array.shape[1:-2] != middle or array.shape[0] not in (1, count):
        got = f"shape {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(
            f"latents must be {expected}, the initial noise; got {got}.", argument="latents", got=got, expected=expected
        )
    if not np.isfinite(array).all():
        raise InputError("latents contains numbers that are not finite.", argument="latents")
    return np.asarray(array, dtype=np.float32)


def steps_of(request: Request) -> tuple[int, dict[str, Any]]:
    """Return the number of steps, and the fields of a `ScheduleRange` that the caller chose. Raises `InputError`."""
    if request.timesteps is not None and request.sigmas is not None:
        raise InputError("timesteps and sigmas both choose the schedule. Pass only one of them.", argument="sigmas")
    timesteps = _descending("timesteps", request.timesteps, 1, MAX_STEPS)
    sigmas = _descending("sigmas", request.sigmas, 2, _MAX_SIGMA)
    custom = {"timesteps": timesteps, "sigmas": sigmas, "eta": check_float("eta", request.eta, 1)}
    if timesteps is not None:
        return len(timesteps), custom
    if sigmas is not None:
        return len(sigmas) - 1, custom
    return check_int("steps", request.steps, 1, MAX_STEPS), custom


def _descending(name: str, value: Any, at_least: int, high: float) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = None if isinstance(value, (str, bytes, dict)) else np.atleast_1d(to_array(value))
    except (TypeError, ValueError):  # rows of several lengths
        numbers = None
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise InputError(f"{name} must be a list of numbers, got {value!r:.80}.", argument=name, got=value)
    if not at_least <= len(numbers) <= MAX_STEPS + 1:
        expected = f"{at_least} to {MAX_STEPS + 1} numbers"
        message = f"{name} must have {expected}, got {len(numbers)}."
        raise InputError(message, argument=name, got=len(numbers), expected=expected)
    if not (np.diff(numbers) < 0).all() or not 0 <= numbers[-1] <= numbers[0] <= high:  # NaN fails too
        expected = f"descending numbers from {high:g} to 0"
        message = f"{name} must be {expected}, got {value!r:.80}."
        raise InputError(message, argument=name, got=value, expected=expected)
    return tuple(numbers.tolist())
