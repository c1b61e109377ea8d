"""Compiling a scheduler of diffusers into a sampler matrix, by running it over basis vectors.

The scheduler is linear in the initial noise, the network's outputs and the noise it draws. So it is run with the
first basis vector in place of the noise, the next ones in place of the outputs, the last ones in place of the draws:
what comes out is a row of coefficients. An earlier run over random numbers counts the draws, and is the proof: where
the matrix does not give what the scheduler gave, the scheduler is not linear and must be run itself.

Nothing is known here of any scheduler's formulas, nor of a network. torch and diffusers are imported only when
something here is called.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from calotype.errors import SamplerError
from calotype.preview import preview_coefficients
from calotype.sampler import SamplerMatrix
from calotype.scheduler_names import SchedulerLike, SchedulerSpec, spec_from
from calotype.scheduler_run import SchedulerSampler, served_draws, stepped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["compile_sampler", "resolve_scheduler"]

_LOUD = 10.0  # the random run is this much louder than a picture, so that no clipping stays out of sight
_TOLERANCE = 1e-5  # of the sum of the terms' magnitudes; float32 inside the schedulers accounts for some 1e-6
_COMPILING = threading.Lock()


def compile_sampler(
    scheduler: SchedulerLike,
    steps: int,
    *,
    base_config: Mapping[str, Any] | None = None,
    eta: float | None = None,
) -> SamplerMatrix | SchedulerSampler:
    """Compile a scheduler for a number of steps.

    Args:
        scheduler: what `spec_from` takes: a name, a class, a scheduler (which is copied), a spec, or None.
        steps: the steps asked for; the network may be called more often.
        base_config: the model's `scheduler_config.json`; see `spec_from`.
        eta: how much noise DDIM and TCD draw. None leaves it to the scheduler: 0 and 0.3. The pipelines of diffusers
            pass 0 to both.

    Returns:
        The matrix; or the scheduler ready to run itself, with the reason, where it is not linear.

    Raises:
        SamplerError: the scheduler is unknown, or cannot make this schedule.
    """
    spec = spec_from(scheduler, base_config)
    with _quiet():
        made = resolve_scheduler(scheduler, base_config)
        options = _options(spec, made, eta)
        try:
            return _compiled(spec, _timed(spec, made, steps), steps, options)
        except SamplerError:
            raise
        except Exception as error:
            raise SamplerError(_cannot(spec, steps, _said(error))) from None


def resolve_scheduler(scheduler: SchedulerLike, base_config: Mapping[str, Any] | None = None) -> Any:
    """Make the diffusers scheduler that is meant; one that is passed in is copied.

    Raises:
        SamplerError: it is unknown, needs a package that is missing, or refuses its configuration.
    """
    spec = spec_from(scheduler, base_config)
    if not (scheduler is None or isinstance(scheduler, (SchedulerSpec, str, type))):
        return copy.deepcopy(scheduler)
    if spec.by_hand and not isinstance(scheduler, type):
        raise SamplerError(f"{spec.name} cannot be made from data, as {spec.by_hand}; pass the scheduler itself.")
    try:
        made: Any = scheduler if isinstance(scheduler, type) else _class_of(spec)
        takes = inspect.signature(made).parameters
        return made(**{key: value for key, value in spec.config.items() if key in takes})
    except SamplerError:
        raise
    except ImportError as error:
        raise SamplerError(f"{spec.name} needs a package that is not installed: {_said(error)}.") from None
    except Exception as error:
        raise SamplerError(f"{spec.name} refuses its configuration: {_said(error)}.") from None


def _class_of(spec: SchedulerSpec) -> Any:
    import diffusers

    found = getattr(diffusers, spec.class_name, None)
    if found is None:
        raise SamplerError(f"diffusers {diffusers.__version__} has no scheduler called {spec.class_name}.")
    return found


def _options(spec: SchedulerSpec, scheduler: Any, eta: float | None) -> dict[str, Any]:
    if eta is None:
        return {}
    if "eta" not in inspect.signature(scheduler.step).parameters:
        raise SamplerError(f"{spec.name} takes no eta; only DDIM and TCD do.")
    if not 0 <= eta <= 1:
        raise SamplerError(f"eta is {eta}; it must be between 0 and 1.")
    return {"eta": eta}


def _timed(spec: SchedulerSpec, scheduler: Any, steps: int) -> Any:
    """The same scheduler with its timesteps set, standing before the first."""
    trained = int(scheduler.config.get("num_train_timesteps", 1000))
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= trained:
        raise SamplerError(f"steps is {steps!r}; it must be a whole number from 1 to {trained}.")
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Rounded timesteps may repeat, and the search for the first by its value would find the second.
        scheduler.set_begin_index(0)
    if len(scheduler.timesteps) == 0:
        raise SamplerError(_cannot(spec, steps, "it has no timesteps for them"))
    return scheduler


def _compiled(
    spec: SchedulerSpec, scheduler: Any, steps: int, options: dict[str, Any]
) -> SamplerMatrix | SchedulerSampler:
    timesteps = np.array(scheduler.timesteps, dtype=np.float64)
    preview = preview_coefficients(scheduler, timesteps)
    loud = _random_walk(scheduler, options)
    if not np.isfinite(loud.rows).all():
        raise SamplerError(_cannot(spec, steps, "its own numbers are not finite"))
    basis = _basis_walk(scheduler, options, size=len(loud.history))
    if basis is not None and _agree(basis, loud):
        return SamplerMatrix(name=spec.name, timesteps=timesteps, rows=basis.rows, preview=preview)
    reason = _reason(spec, scheduler)
    return SchedulerSampler(
        name=spec.name, reason=reason, timesteps=timesteps, preview=preview, scheduler=scheduler, options=options
    )


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """One run of a scheduler: what went in, and what came out."""

    history: NDArray[np.float64]  # [1 + calls + draws, K]
    rows: NDArray[np.float64]  # [calls + 1, K]


def _random_walk(scheduler: Any, options: dict[str, Any]) -> _Walk:
    random = np.random.default_rng(0)
    return _walk(scheduler, options, lambda _: _LOUD * random.standard_normal(256))


def _basis_walk(scheduler: Any, options: dict[str, Any], size: int) -> _Walk | None:
    basis = np.eye(size)
    try:
        return _walk(scheduler, options, lambda column: basis[column])
    except IndexError:  # it drew more often than before
        return None


def _walk(scheduler: Any, options: dict[str, Any], vector: Callable[[int], NDArray[np.float64]]) -> _Walk:
    """Run a copy of the scheduler, with `vector(column)` in place of everything that comes from outside."""
    import torch

    scheduler = copy.deepcopy(scheduler)
    calls = len(scheduler.timesteps)
    draws = itertools.count(1 + calls)
    history: dict[int, NDArray[np.float64]] = {}

    def given(column: int) -> Any:
        history[column] = vector(column)
        # Four dimensions, as some schedulers look at them; a copy, as some work in place.
        return torch.from_numpy(history[column].copy()).reshape(1, -1, 1, 1)

    rows = []
    with served_draws(scheduler, lambda _: given(next(draws))), torch.no_grad(), torch.random.fork_rng(devices=[]):
        latents = given(0) * scheduler.init_noise_sigma
        for i, timestep in enumerate(scheduler.timesteps):
            rows.append(np.array(scheduler.scale_model_input(latents, timestep), dtype=np.float64).ravel())
            latents = stepped(scheduler, i, given(1 + i), latents, options)
    rows.append(np.array(latents, dtype=np.float64).ravel())
    return _Walk(history=np.stack([history[column] for column in sorted(history)]), rows=np.stack(rows))


def _agree(basis: _Walk, loud: _Walk) -> bool:
    if len(basis.history) != len(loud.history) or not np.isfinite(basis.rows).all():
        return False
    wrong = np.abs(basis.rows @ loud.history - loud.rows)
    return bool((wrong <= _TOLERANCE * (np.abs(basis.rows) @ np.abs(loud.history))).all())


def _reason(spec: SchedulerSpec, scheduler: Any) -> str:
    if scheduler.config.get("thresholding"):
        return f"{spec.name} thresholds the clean latents, which is not linear"
    if scheduler.config.get("clip_sample"):
        return f"{spec.name} clips the clean latents (clip_sample), which is not linear"
    if hasattr(scheduler, "noise_sampler"):
        return f"{spec.name} draws its noise from a Brownian tree"
    return f"{spec.name} is not linear in the noise and the network's outputs, or draws noise by means of its own"


def _cannot(spec: SchedulerSpec, steps: int, why: str) -> str:
    schedule = "a schedule of one step" if steps == 1 else f"a schedule of {steps} steps"
    return f"{spec.name} cannot make {schedule}: {why}. Try another number of steps, or another scheduler."


def _said(error: Exception) -> str:
    """What a library said, in at most one sentence; nothing of use is said by an index out of range."""
    if isinstance(error, (ValueError, NotImplementedError, ImportError)) and str(error):
        return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")[:300]
    return f"diffusers fails on it with {type(error).__name__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of what is looked at and refused here anyway; one thread at a time, as the filters are global."""
    with _COMPILING, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
