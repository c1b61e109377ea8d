"""Compile a diffusers scheduler into a sampler matrix, by running it over basis vectors.

Most schedulers are linear in the initial noise, the network's outputs and the noise that they draw. The compiler runs
the scheduler with the first basis vector as the noise, the next ones as the outputs, and the last ones as the draws:
each result is a row of coefficients. Random numbers run along as a test. If the matrix does not map them to the
scheduler's own result, the scheduler is not linear and must run itself.

This file knows neither the formulas of schedulers nor the network. It imports torch and diffusers
only when called.
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
from .scheduler_loop import (
    SchedulerSampler,
    TimestepSlice,
    prepare_latents,
    scheduler_step,
    served_draws,
    step_options,
    with_noise,
)
from .schedulers import SchedulerLike, SchedulerSpec, spec_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_WIDTH = 256  # the number of random test values
_PROBE_SCALE = 10.0  # the test values are this much larger than latents, so that clipping always shows
_MAX_DRAWS = 2  # noise draws in one call; no scheduler of diffusers makes more
_TOLERANCE = 1e-6  # relative to the sum of the terms' magnitudes: the precision of float32
_COMPILING = forks.Lock(threading.RLock)


def compile_sampler(
    scheduler: SchedulerLike,
    steps: int,
    *,
    base_config: Mapping[str, Any] | None = None,
    schedule_range: ScheduleRange = FULL_SCHEDULE,
    own_code: str = "",
) -> SamplerMatrix | SchedulerSampler:
    """Compile a scheduler for a number of steps.

    Args:
        scheduler: What `spec_from` takes: a name, a class, a scheduler (which is copied), a spec, or None.
        steps: The number of steps. Some schedulers call the network more often.
        base_config: The model's `scheduler_config.json`; see `spec_from`.
        schedule_range: The part of the schedule to run, and its starting point.
        own_code: Why the scheduler must run itself, if it must.

    Returns:
        The matrix; or, for a scheduler that is not linear, the scheduler ready to run itself, with the reason.

    Raises:
        SamplerError: The scheduler is unknown, or cannot make this schedule.
    """
    with _quiet():
        spec = spec_from(scheduler, base_config)
        resolved = resolve_scheduler(scheduler, base_config)
        try:
            return _compiled(spec, resolved, steps, _slice(spec, resolved, steps, schedule_range), own_code)
        except SamplerError:
            raise
        except Exception as error:
            raise _cannot(spec, steps, _error_text(error)) from None


def resolve_scheduler(scheduler: SchedulerLike, base_config: Mapping[str, Any] | None = None) -> Any:
    """Create the diffusers scheduler, or copy the one passed in.

    Raises:
        SamplerError: The scheduler is unknown, needs a missing package, or refuses its configuration.
    """
    spec = spec_from(scheduler, base_config)
    if not (scheduler is None or isinstance(scheduler, (SchedulerSpec, str, type))):
        return copy.deepcopy(scheduler)
    if spec.by_hand and not isinstance(scheduler, type):
        message = f"Cannot create {spec.name} from its config: {spec.by_hand}. Pass the scheduler itself."
        raise SamplerError(message, scheduler=spec.name)
    kind: Any = scheduler
    try:
        if not isinstance(scheduler, type):
            import diffusers

            kind = getattr(diffusers, spec.class_name, None)
            if kind is None:
                message = f"diffusers {diffusers.__version__} has no scheduler called {spec.class_name}."
                raise SamplerError(message, scheduler=spec.class_name)
        takes = inspect.signature(kind).parameters
        with _quiet():
            return kind(**{key: value for key, value in spec.config.items() if key in takes})
    except SamplerError:
        raise
    except ImportError as error:
        message = f"{spec.name} needs a package that is not installed: {_error_text(error)}."
        raise SamplerError(message, scheduler=spec.name) from None
    except Exception as error:
        message = f"{spec.name} refuses its configuration: {_error_text(error)}."
        raise SamplerError(message, scheduler=spec.name) from None


def _slice(spec: SchedulerSpec, scheduler: Any, steps: int, schedule_range: ScheduleRange) -> TimestepSlice:
    """Set the scheduler's timesteps. Return the calls of a range, counted as diffusers' pipelines count them."""
    trained = int(scheduler.config.get("num_train_timesteps", 1000))
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= trained:
        message = f"Invalid steps: got {steps!r}; expected an integer from 1 to {trained}."
        raise SamplerError(message, scheduler=spec.name, steps=steps)
    within = _set_timesteps(spec, scheduler, steps, schedule_range)
    times = scheduler.timesteps
    if len(times) == 0:
        raise _cannot(spec, steps, "it has no timesteps")
    first, last = 0 if within else schedule_range.skipped * scheduler.order, len(times)
    if schedule_range.begin is not None:
        after = int((times < round(trained - schedule_range.begin * trained)).sum())
        first = len(times) - after - (1 if scheduler.order == 2 and after % 2 == 0 else 0)
    if schedule_range.end is not None:
        last = int((times >= round(trained - schedule_range.end * trained)).sum())
    if not 0 <= first < last:
        raise _cannot(spec, steps, "no step is left between its start and its end")
    if hasattr(scheduler, "set_begin_index"):
        # Rounded timesteps may repeat, and a search by value would return the second one.
        scheduler.set_begin_index(first)
    return TimestepSlice(schedule_range=schedule_range, first=first, calls=last - first)


def _set_timesteps(spec: SchedulerSpec, scheduler: Any, steps: int, schedule_range: ScheduleRange) -> bool:
    """Set the scheduler's timesteps, or the caller's own. Return whether all of them lie within the strength."""
    custom = {"timesteps": schedule_range.timesteps, "sigmas": schedule_range.sigmas}
    passed: dict[str, Any] = {name: list(values) for name, values in custom.items() if values is not None}
    takes = inspect.signature(scheduler.set_timesteps).parameters
    for name in passed:
        if name not in takes:
            message = f"{spec.name} takes no {name}, and euler takes timesteps and sigmas. Pass scheduler='euler'."
            raise SamplerError(message, scheduler=spec.name, steps=steps)
    within = schedule_range.strength is not None and "strength" in takes
    more = {"strength": schedule_range.strength} if within else {}
    scheduler.set_timesteps(**(passed or {"num_inference_steps": steps}), **more)
    return within


def _compiled(
    spec: SchedulerSpec, scheduler: Any, steps: int, timestep_slice: TimestepSlice, own_code: str
) -> SamplerMatrix | SchedulerSampler:
    timesteps = scheduler.timesteps.numpy().astype(np.float64)[timestep_slice.first :][: timestep_slice.calls]
    preview = preview_coefficients(scheduler, timesteps)
    probe = _probe_run(scheduler, timestep_slice)
    if not np.isfinite(probe.probe_rows).all():
        raise _cannot(spec, steps, "its numbers are not finite")
    if _is_linear(probe) and not own_code:
        return SamplerMatrix(
            name=spec.name,
            timesteps=timesteps,
            rows=probe.rows,
            preview=preview,
            image_coefficients=probe.image_coefficients if timestep_slice.schedule_range.takes_latents else None,
            masked_rows=probe.masked_rows if timestep_slice.schedule_range.preserves_unmasked else None,
        )
    return SchedulerSampler(
        name=spec.name,
        reason=own_code or _reason(spec, scheduler),
        timesteps=timesteps,
        preview=preview,
        scheduler=scheduler,
        timestep_slice=timestep_slice,
    )


@dataclass(frozen=True, kw_only=True)
class _ProbeRun:
    """One run of a scheduler. A column of the history is the noise, an output of the network, or a draw."""

    rows: NDArray[np.float64]  # [calls + 1, columns]: the results of the basis vectors
    image_coefficients: NDArray[np.float64]  # [calls + 1]: the result of the one for the image's latents
    masked_rows: NDArray[np.float64]  # [calls + 1, 2]: noise and clean latents in the area that a mask preserves
    probe_history: NDArray[np.float64]  # [columns, _WIDTH]: the random inputs
    probe_clean: NDArray[np.float64]  # [_WIDTH]
    probe_rows: NDArray[np.float64]  # [calls + 1, _WIDTH]: the results of the random inputs


def _probe_run(scheduler: Any, timestep_slice: TimestepSlice) -> _ProbeRun:
    """Run a copy of the scheduler over basis vectors and random numbers, which lie side by side in one tensor."""
    import torch

    scheduler, kind, calls = copy.deepcopy(scheduler), _exact_tensor(), timestep_slice.calls
    options = step_options(scheduler, timestep_slice)
    last = 1 + calls + _MAX_DRAWS * calls  # the column of the clean latents
    draws = itertools.count(1 + calls)

    def column(index: int) -> Any:
        basis = np.zeros(last + 1)
        basis[index : index + 1] = 1  # zeros for one draw too many, which then fails the test with random numbers
        both = torch.from_numpy(np.concatenate([basis, _probe_noise(index)]))
        return both.reshape(1, -1, 1, 1).as_subclass(kind)  # some schedulers require four dimensions

    def drawn(_: Any) -> Any:
        index = next(draws)
        return column(index if index < last else last + 1)

    noise, clean, mixed, masked = column(0), column(last), [], []
    with served_draws(scheduler, drawn), torch.no_grad(), torch.random.fork_rng(devices=[]):
        latents = prepare_latents(scheduler, timestep_slice, noise, clean)
        for i in range(calls):
            timestep = scheduler.timesteps[timestep_slice.first + i]
            preserved = latents
            if i and timestep_slice.schedule_range.preserves_unmasked:
                preserved = with_noise(scheduler, timestep_slice, i, noise, clean)
            masked.append(scheduler.scale_model_input(preserved, timestep).flatten())
            mixed.append(scheduler.scale_model_input(latents, timestep).flatten())
            latents = scheduler_step(scheduler, timestep_slice.first + i, column(1 + i), latents, **options)
    mixed.append(latents.flatten())
    masked.append(clean.flatten())
    columns = min(next(draws), last)
    rows, masked_rows = (torch.stack(each).double().numpy() for each in (mixed, masked))
    return _ProbeRun(
        rows=rows[:, :columns],
        image_coefficients=rows[:, last],
        masked_rows=masked_rows[:, [0, last]],
        probe_history=np.stack([_probe_noise(index) for index in range(columns)]),
        probe_clean=_probe_noise(last),
        probe_rows=rows[:, last + 1 :],
    )


def _probe_noise(column: int) -> NDArray[np.float64]:
    return _PROBE_SCALE * np.random.default_rng(column).standard_normal(_WIDTH)


@functools.cache
def _exact_tensor() -> Any:
    """Return a tensor class that stays float64. Some schedulers cast to float32, which would round the matrix."""
    import torch

    class Exact(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.Tensor.to and any(item is torch.float32 for item in (*args, *kwargs.values())):
                return args[0]
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    return Exact


def _is_linear(probe: _ProbeRun) -> bool:
    if not np.isfinite(probe.rows).all():
        return False
    from_image = np.outer(probe.image_coefficients, probe.probe_clean)
    error = np.abs(probe.rows @ probe.probe_history + from_image - probe.probe_rows)
    terms = np.abs(probe.rows) @ np.abs(probe.probe_history) + np.abs(from_image)
    return bool((error <= _TOLERANCE * terms).all())


def _reason(spec: SchedulerSpec, scheduler: Any) -> str:
    if scheduler.config.get("thresholding"):
        return f"{spec.name} thresholds the clean latents, which is not linear"
    if scheduler.config.get("clip_sample"):
        return f"{spec.name} clips the clean latents (clip_sample), which is not linear"
    if hasattr(scheduler, "noise_sampler"):
        return f"{spec.name} draws its noise from a Brownian tree"
    return f"{spec.name} is not linear in the noise and the network's outputs, or draws noise without randn_tensor"


def _cannot(spec: SchedulerSpec, steps: int, reason: str) -> SamplerError:
    schedule = "a schedule of one step" if steps == 1 else f"a schedule of {steps} steps"
    message = f"{spec.name} cannot make {schedule}: {reason}. Try another number of steps, or another scheduler."
    return SamplerError(message, scheduler=spec.name, steps=steps)


def _error_text(error: Exception) -> str:
    """Return the first sentence of an error that a library raised on purpose; other errors do not help the user."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return text.rstrip(".")
    raised = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if raised.startswith("raise") and text:
        return re.split(r"\.\s", text)[0].rstrip(".")
    return f"the code of diffusers fails on it ({type(error).__name__})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings, as this file checks results itself. One thread at a time: the filters are global."""
    with _COMPILING, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
