"""Compiling a scheduler of diffusers into a sampler matrix, by running it over basis vectors.

The scheduler is linear in the initial noise, the network's outputs and the noise it draws. So it is run with the
first basis vector in place of the noise, the next ones in place of the outputs, the last ones in place of the draws:
what comes out is a row of coefficients. Random numbers run along, and are the proof: where the matrix does not make
of them what the scheduler made, the scheduler is not linear and must be run itself.

Nothing is known here of any scheduler's formulas, nor of a network. torch and diffusers are imported only when
something here is called.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import re
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SamplerError
from ..system import forks
from .matrix import SamplerMatrix
from .preview import preview_coefficients
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .scheduler_loop import SchedulerSampler, TimestepSlice, prepare_latents, scheduler_step, served_draws, with_noise
from .schedulers import SchedulerLike, SchedulerSpec, spec_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["compile_sampler", "resolve_scheduler"]

_WIDTH = 256  # how many random numbers run along
_PROBE_SCALE = 10.0  # they are this much louder than a picture, so that no clipping stays out of sight
_MOST_DRAWS = 2  # of noise in one call; no scheduler of diffusers draws more
_TOLERANCE = 1e-6  # of the sum of the terms' magnitudes: what float32 itself would show
_COMPILING = forks.Lock(threading.RLock)


def compile_sampler(
    scheduler: SchedulerLike,
    steps: int,
    *,
    base_config: Mapping[str, Any] | None = None,
    course: ScheduleRange = FULL_SCHEDULE,
) -> SamplerMatrix | SchedulerSampler:
    """Compile a scheduler for a number of steps.

    Args:
        scheduler: what `spec_from` takes: a name, a class, a scheduler (which is copied), a spec, or None.
        steps: the steps asked for; the network may be called more often.
        base_config: the model's `scheduler_config.json`; see `spec_from`.
        course: which part of the schedule is walked, and from what.

    Returns:
        The matrix; or the scheduler ready to run itself, with the reason, where it is not linear.

    Raises:
        SamplerError: the scheduler is unknown, or cannot make this schedule.
    """
    with _quiet():
        spec = spec_from(scheduler, base_config)
        made = resolve_scheduler(scheduler, base_config)
        try:
            timed = _timed(spec, made, steps)
            return _compiled(spec, timed, steps, _stretch(spec, timed, steps, course))
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
        with _quiet():
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


def _timed(spec: SchedulerSpec, scheduler: Any, steps: int) -> Any:
    """The same scheduler with its timesteps set, standing before the first."""
    trained = int(scheduler.config.get("num_train_timesteps", 1000))
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= trained:
        raise SamplerError(f"steps is {steps!r}; it must be a whole number from 1 to {trained}.")
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) == 0:
        raise SamplerError(_cannot(spec, steps, "it has no timesteps for them"))
    return scheduler


def _stretch(spec: SchedulerSpec, scheduler: Any, steps: int, course: ScheduleRange) -> TimestepSlice:
    """The calls that the course comes to, counted as diffusers' pipelines count them; the scheduler stands before it.

    Raises `SamplerError` where there are none.
    """
    times, trained = scheduler.timesteps, int(scheduler.config.get("num_train_timesteps", 1000))
    first, last = course.skipped * scheduler.order, len(times)
    if course.begin is not None:
        after = int((times < round(trained - course.begin * trained)).sum())
        first = len(times) - after - (1 if scheduler.order == 2 and after % 2 == 0 else 0)
    if course.end is not None:
        last = int((times >= round(trained - course.end * trained)).sum())
    if not 0 <= first < last:
        raise SamplerError(_cannot(spec, steps, "none of them is left between where it is to begin and to end"))
    if hasattr(scheduler, "set_begin_index"):
        # Rounded timesteps may repeat, and the search for the first by its value would find the second.
        scheduler.set_begin_index(first)
    return TimestepSlice(course=course, first=first, calls=last - first)


def _compiled(
    spec: SchedulerSpec, scheduler: Any, steps: int, stretch: TimestepSlice
) -> SamplerMatrix | SchedulerSampler:
    timesteps = scheduler.timesteps.numpy().astype(np.float64)[stretch.first :][: stretch.calls]
    preview = preview_coefficients(scheduler, timesteps)
    walk = _probe_run(scheduler, stretch)
    if not np.isfinite(walk.probe_rows).all():
        raise SamplerError(_cannot(spec, steps, "its own numbers are not finite"))
    if _is_linear(walk):
        own = {"clean": walk.clean} if stretch.course.takes_latents else {}
        own |= {"kept": walk.kept} if stretch.course.preserves_unmasked else {}
        return SamplerMatrix(name=spec.name, timesteps=timesteps, rows=walk.rows, preview=preview, **own)
    return SchedulerSampler(
        name=spec.name,
        reason=_reason(spec, scheduler),
        timesteps=timesteps,
        preview=preview,
        scheduler=scheduler,
        stretch=stretch,
    )


@dataclass(frozen=True, kw_only=True)
class _ProbeRun:
    """One run of a scheduler. A column of history is the noise, an output of the network, or a draw."""

    rows: NDArray[np.float64]  # [calls + 1, columns]: what the basis vectors became
    clean: NDArray[np.float64]  # [calls + 1]: and the one in place of a picture's latents
    kept: NDArray[np.float64]  # [calls + 1, 2]: of noise and clean latents, where a mask keeps the picture
    probe_history: NDArray[np.float64]  # [columns, _WIDTH]: the random numbers that went in
    probe_clean: NDArray[np.float64]  # [_WIDTH]
    probe_rows: NDArray[np.float64]  # [calls + 1, _WIDTH]: what they became


def _probe_run(scheduler: Any, stretch: TimestepSlice) -> _ProbeRun:
    """Run a copy of the scheduler over basis vectors and random numbers, side by side in one tensor."""
    import torch

    scheduler, kind, calls = copy.deepcopy(scheduler), _exact_tensor(), stretch.calls
    most = 1 + calls + _MOST_DRAWS * calls  # after which the clean latents stand
    draws = itertools.count(1 + calls)

    def given(column: int) -> Any:
        basis = np.zeros(most + 1)
        basis[column : column + 1] = 1  # nothing for a draw too many, which the random numbers will betray
        both = torch.from_numpy(np.concatenate([basis, _probe_noise(column)]))
        return both.reshape(1, -1, 1, 1).as_subclass(kind)  # some schedulers want four dimensions

    def drawn(_: Any) -> Any:
        column = next(draws)
        return given(column if column < most else most + 1)

    noise, clean, made, kept = given(0), given(most), [], []
    with served_draws(scheduler, drawn), torch.no_grad(), torch.random.fork_rng(devices=[]):
        latents = prepare_latents(scheduler, stretch, noise, clean)
        for i in range(calls):
            timestep = scheduler.timesteps[stretch.first + i]
            stays = (
                with_noise(scheduler, stretch, i, noise, clean) if i and stretch.course.preserves_unmasked else latents
            )
            kept.append(scheduler.scale_model_input(stays, timestep).flatten())
            made.append(scheduler.scale_model_input(latents, timestep).flatten())
            latents = scheduler_step(scheduler, stretch.first + i, given(1 + i), latents)
    made.append(latents.flatten())
    kept.append(clean.flatten())
    columns = min(next(draws), most)
    rows, stays = (torch.stack(each).double().numpy() for each in (made, kept))
    return _ProbeRun(
        rows=rows[:, :columns],
        clean=rows[:, most],
        kept=stays[:, [0, most]],
        probe_history=np.stack([_probe_noise(column) for column in range(columns)]),
        probe_clean=_probe_noise(most),
        probe_rows=rows[:, most + 1 :],
    )


def _probe_noise(column: int) -> NDArray[np.float64]:
    return _PROBE_SCALE * np.random.default_rng(column).standard_normal(_WIDTH)


@functools.cache
def _exact_tensor() -> Any:
    """A tensor that stays float64. Some schedulers cast to float32, and the matrix would keep their rounding."""
    import torch

    class Exact(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.Tensor.to and any(item is torch.float32 for item in (*args, *kwargs.values())):
                return args[0]
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    return Exact


def _is_linear(walk: _ProbeRun) -> bool:
    if not np.isfinite(walk.rows).all():
        return False
    wrong = np.abs(walk.rows @ walk.probe_history + np.outer(walk.clean, walk.probe_clean) - walk.probe_rows)
    terms = np.abs(walk.rows) @ np.abs(walk.probe_history) + np.abs(np.outer(walk.clean, walk.probe_clean))
    return bool((wrong <= _TOLERANCE * terms).all())


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
    """What a library said on purpose, in one sentence. An error it ran into by itself says nothing to the user."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return text.rstrip(".")
    raised = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if raised.startswith("raise") and text:
        return re.split(r"\.\s", text)[0].rstrip(".")
    return f"the code of diffusers fails on it ({type(error).__name__})"


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of what is looked at and refused here anyway; one thread at a time, as the filters are global."""
    with _COMPILING, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
