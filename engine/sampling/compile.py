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
from .schedule_range import FULL_SCHEDULE, ScheduleRange
from .scheduler_loop import SchedulerSampler, TimestepSlice, prepare_latents, scheduler_step, served_draws, with_noise
from .schedulers import SchedulerLike, SchedulerSpec, spec_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_WIDTH = 256  # the number of random test values
_PROBE_SCALE = 10.0  # the test values are this much larger than latents, so that clipping always shows
_MAX_DRAWS = 2  # noise draws in one call; no scheduler of diffusers makes more
_TOLERANCE = 1e-6  # relative to the sum of the terms' magnitudes: the precision of float32
_MIN_ALPHA = 2.0**-24  # diffusers' own replacement for zero, at a zero terminal signal-to-noise ratio
_COMPILING = forks.Lock(threading.RLock)


def compile_sampler(
    scheduler: SchedulerLike,
    steps: int,
    *,
    base_config: Mapping[str, Any] | None = None,
    schedule_range: ScheduleRange = FULL_SCHEDULE,
) -> SamplerMatrix | SchedulerSampler:
    """Compile a scheduler for a number of steps.

    Args:
        scheduler: What `spec_from` takes: a name, a class, a scheduler (which is copied), a spec, or None.
        steps: The number of steps. Some schedulers call the network more often.
        base_config: The model's `scheduler_config.json`; see `spec_from`.
        schedule_range: The part of the schedule to run, and its starting point.

    Returns:
        The matrix; or, for a scheduler that is not linear, the scheduler ready to run itself, with the reason.

    Raises:
        SamplerError: The scheduler is unknown, or cannot make this schedule.
    """
    with _quiet():
        spec = spec_from(scheduler, base_config)
        resolved = resolve_scheduler(scheduler, base_config)
        try:
            return _compiled(spec, resolved, steps, _slice(spec, resolved, steps, schedule_range))
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
    within = schedule_range.strength is not None and "strength" in inspect.signature(scheduler.set_timesteps).parameters
    scheduler.set_timesteps(steps, **({"strength": schedule_range.strength} if within else {}))
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


def _compiled(
    spec: SchedulerSpec, scheduler: Any, steps: int, timestep_slice: TimestepSlice
) -> SamplerMatrix | SchedulerSampler:
    timesteps = scheduler.timesteps.numpy().astype(np.float64)[timestep_slice.first :][: timestep_slice.calls]
    preview = preview_coefficients(scheduler, timesteps)
    probe = _probe_run(scheduler, timestep_slice)
    if not np.isfinite(probe.probe_rows).all():
        raise _cannot(spec, steps, "its numbers are not finite")
    if _is_linear(probe):
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
        reason=_reason(spec, scheduler),
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
            latents = scheduler_step(scheduler, timestep_slice.first + i, column(1 + i), latents)
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


def preview_coefficients(scheduler: Any, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pairs (a, b) such that `a * input + b * output` estimates the clean latents. float64 [calls, 2].

    They depend only on the network's prediction type and on the noise level, so they hold for every scheduler. An input
    is `sqrt(A) * clean + sqrt(1 - A) * noise`, where A is alpha-bar (Ho et al., "Denoising Diffusion Probabilistic
    Models", eq. 4; v: Salimans & Ho, "Progressive Distillation", appendix D). Sigma schedulers scale their inputs to
    that form, with A = 1 / (1 + sigma^2). As in those, log sigma is interpolated between timesteps.

    Args:
        scheduler: A diffusers scheduler.
        timesteps: The network's timestep at each call. [calls].

    Raises:
        SamplerError: The scheduler is not for the networks of SD 1, SD 2 or SDXL.
    """
    kind = scheduler.config.get("prediction_type", "epsilon")
    if hasattr(scheduler, "precondition_outputs"):
        return _edm(scheduler, timesteps)
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction", "sample", "original_sample"):
        name = type(scheduler).__name__
        raise SamplerError(f"{name} ({kind}) is not for the networks of SD 1, SD 2 or SDXL.", scheduler=name)
    if scheduler.config.get("timestep_type") == "continuous" and kind == "v_prediction":
        alpha = 1 / (1 + np.exp(8 * timesteps))  # the timestep is log(sigma) / 4
    else:
        alpha = _alpha_bar(scheduler.alphas_cumprod.numpy().astype(np.float64), timesteps)
    signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
    if kind == "epsilon":
        return np.stack([1 / signal, -noise / signal], axis=1)
    if kind == "v_prediction":
        return np.stack([signal, -noise], axis=1)
    return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], axis=1)


def _alpha_bar(trained: NDArray[np.float64], timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    trained = np.clip(trained, _MIN_ALPHA, 1 - _MIN_ALPHA)
    log_sigmas = np.log((1 - trained) / trained) / 2
    log_sigma = np.interp(timesteps, np.arange(trained.size), log_sigmas)
    return np.asarray(1 / (1 + np.exp(2 * log_sigma)), dtype=np.float64)


def _edm(scheduler: Any, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", table 1."""
    pairs = []
    for timestep in timesteps:
        sigma = float(np.exp(4 * timestep))  # the timestep is log(sigma) / 4
        unscaled = float(np.hypot(sigma, scheduler.config["sigma_data"]))
        clean = scheduler.precondition_outputs
        pairs.append((float(clean(unscaled, 0.0, sigma)), float(clean(0.0, 1.0, sigma))))
    return np.array(pairs, dtype=np.float64)
