"""Run a scheduler of diffusers itself, for the few that are not linear and so cannot be a matrix.

Each image of a batch has its own scheduler. So no image depends on the others, even if the scheduler computes
thresholds over the batch, or one Brownian tree for all of it. The run's `draw` replaces the scheduler's `randn_tensor`.
A scheduler that draws in another way (DPM-Solver SDE's Brownian tree, torch's global generator) is seeded for each
image, so that the image is still a function of its seed.

This file imports torch and diffusers only when called.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SamplerError
from ..system import forks
from .matrix import Draw, Latents, Sampler, SamplerRun, SourceLatents, check_shape
from .schedule_range import ScheduleRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_PATCHING = forks.Lock(threading.RLock)


@dataclass(frozen=True, kw_only=True)
class TimestepSlice:
    """The part of a scheduler's timesteps that a range covers: `calls` of them, starting at `first`."""

    schedule_range: ScheduleRange
    first: int
    calls: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SchedulerSampler(Sampler):
    """A schedule that the scheduler itself must run.

    Attributes:
        scheduler: A diffusers scheduler with its timesteps set, ready for the first call. Each image gets a copy.
        timestep_slice: The part of the scheduler's timesteps to run.
    """

    scheduler: Any
    timestep_slice: TimestepSlice

    def _takes(self) -> tuple[bool, bool]:
        schedule_range = self.timestep_slice.schedule_range
        return schedule_range.takes_latents, schedule_range.preserves_unmasked

    def _start(
        self, noise: Latents, draw: Draw, seeds: Sequence[int] | None, original: SourceLatents | None
    ) -> SchedulerRun:
        if seeds is not None and len(seeds) != len(noise):
            raise SamplerError(f"Invalid seeds: got {len(seeds)} seeds for {len(noise)} images.", scheduler=self.name)
        return SchedulerRun(
            self, noise, draw, [_seed_of(image) for image in noise] if seeds is None else seeds, original
        )


class SchedulerRun(SamplerRun):
    """One run of a batch through a `SchedulerSampler`, in float32. `draw` serves the calls of `randn_tensor`."""

    def __init__(
        self,
        sampler: SchedulerSampler,
        noise: Latents,
        draw: Draw,
        seeds: Sequence[int],
        original: SourceLatents | None,
    ) -> None:
        super().__init__(sampler.calls, noise.shape, original)
        self._weights, self._draw = sampler.preview, draw
        self._draws: list[Latents] = []
        self._images = [_ImageRun(sampler, i, noise[i : i + 1], seed, original) for i, seed in enumerate(seeds)]
        self._next_input: Latents | None = None  # after `input`
        self._last = (noise, noise)  # input and output of the last call

    def _input(self, i: int) -> Latents:
        if self._next_input is None:
            self._next_input = np.concatenate([image.input(i) for image in self._images])
        return self._next_input.copy()

    def _push(self, i: int, output: Latents) -> None:
        self._last = (self._input(i), np.array(output, dtype=np.float32))
        for image, image_output in zip(self._images, self._last[1], strict=True):
            image.step(i, image_output[np.newaxis], self._draw_at)
        self._next_input = None

    def current(self) -> Latents:
        """Return the latents after the last call pushed, as the scheduler has them. float32 [B, C, H, W]."""
        return self._latents()

    def replace(self, latents: Latents) -> None:
        """Replace these latents, before the next call. [B, C, H, W]."""
        import torch

        check_shape("latents", latents.shape, self._shape)
        for image, each in zip(self._images, latents, strict=True):
            image.latents = torch.from_numpy(each[np.newaxis].copy())
        self._next_input = None

    def interrupt(self) -> None:
        """End the run after the last call pushed: its latents are the result."""
        self._calls = self._pushed

    def _latents(self) -> Latents:
        return np.concatenate([image.latents.numpy().astype(np.float32) for image in self._images])

    def _preview(self, i: int) -> Latents:
        input_weight, output_weight = self._weights[i]
        estimate = np.asarray(input_weight * self._last[0] + output_weight * self._last[1], dtype=np.float32)
        if self._original is None or self._original.inpaint_mask is None:
            return estimate
        return np.where(self._original.repainted(1), estimate, self._original.latents)

    def _draw_at(self, number: int) -> Latents:
        while len(self._draws) <= number:
            self._draws.append(self._draw())
        return self._draws[number]


class _ImageRun:
    """One image of the batch, with its own scheduler, latents and random state."""

    def __init__(
        self, sampler: SchedulerSampler, index: int, noise: Latents, seed: int, original: SourceLatents | None
    ) -> None:
        import torch

        self._index = index
        self._timestep_slice = sampler.timestep_slice
        self._noise = torch.from_numpy(noise.copy())  # [1, C, H, W]
        self._clean = None if original is None else torch.from_numpy(original.latents[index : index + 1].copy())
        self._masked = None if original is None or original.inpaint_mask is None else original
        self._scheduler = copy.deepcopy(sampler.scheduler)
        if getattr(self._scheduler, "noise_sampler_seed", 0) is None:
            self._scheduler.noise_sampler_seed = seed
        self._options: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(seed)
        self._options |= step_options(self._scheduler, self._timestep_slice)
        if "generator" in inspect.signature(self._scheduler.step).parameters:
            self._options["generator"] = generator
        self._random = generator.get_state()
        self._drawn = 0
        self.latents = prepare_latents(self._scheduler, self._timestep_slice, self._noise, self._clean)  # [1, C, H, W]

    def input(self, i: int) -> Latents:
        timestep = self._scheduler.timesteps[self._timestep_slice.first + i]
        latents = self._scheduler.scale_model_input(self.latents, timestep)
        return np.asarray(latents.numpy(), dtype=np.float32)

    def step(self, i: int, output: Latents, draw_at: Callable[[int], Latents]) -> None:
        import torch

        def serve(shape: tuple[int, ...]) -> Any:
            drawn = draw_at(self._drawn)[self._index : self._index + 1]
            check_shape("noise draw", drawn.shape, shape)
            self._drawn += 1
            return torch.from_numpy(drawn.copy())

        with served_draws(self._scheduler, serve), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            index, tensor = self._timestep_slice.first + i, torch.from_numpy(output)
            self.latents = scheduler_step(self._scheduler, index, tensor, self.latents, **self._options)
            self._random = torch.get_rng_state()
        if self._masked is not None and self._clean is not None:
            repainted = self._masked.repainted((i + 1) / self._timestep_slice.calls)[self._index : self._index + 1]
            preserved = self._clean
            if i + 1 < self._timestep_slice.calls:
                preserved = with_noise(self._scheduler, self._timestep_slice, i + 1, self._noise, self._clean)
            self.latents = torch.where(torch.from_numpy(repainted), self.latents, preserved)


def prepare_latents(scheduler: Any, timestep_slice: TimestepSlice, noise: Any, clean: Any) -> Any:
    """Return the latents before the first call, as in diffusers' pipelines."""
    origin = timestep_slice.schedule_range.origin
    if origin == "noise":
        return noise * scheduler.init_noise_sigma
    return clean if origin == "latents" else with_noise(scheduler, timestep_slice, 0, noise, clean)


def with_noise(scheduler: Any, timestep_slice: TimestepSlice, i: int, noise: Any, clean: Any) -> Any:
    """Return the clean latents with the noise of call i, the scheduler's next call."""
    return scheduler.add_noise(clean, noise, scheduler.timesteps[timestep_slice.first + i].reshape(1))


def step_options(scheduler: Any, timestep_slice: TimestepSlice) -> dict[str, Any]:
    """Return the arguments of a scheduler's `step`, as diffusers' pipelines pass them: `eta`, where it takes one."""
    takes = inspect.signature(scheduler.step).parameters
    return {"eta": timestep_slice.schedule_range.eta} if "eta" in takes else {}


def scheduler_step(scheduler: Any, i: int, output: Any, latents: Any, **options: Any) -> Any:
    """Return the latents after call i. A scheduler's `step` returns a tuple or an object."""
    result = scheduler.step(output, scheduler.timesteps[i], latents, **options)
    return result.prev_sample if hasattr(result, "prev_sample") else result[0]


@contextmanager
def served_draws(scheduler: Any, serve: Callable[[tuple[int, ...]], Any]) -> Iterator[None]:
    """Call `serve(shape)` in place of `randn_tensor`, for this scheduler's code on this thread.

    This replaces the function in the modules of the scheduler's class and its bases, one thread at a time. Other
    threads still get the original function.
    """
    owner = threading.get_ident()
    modules = {sys.modules[base.__module__] for base in type(scheduler).__mro__ if base.__module__ in sys.modules}
    with _PATCHING:
        originals = {module: module.randn_tensor for module in modules if hasattr(module, "randn_tensor")}
        try:
            for module, original in originals.items():
                setattr(module, "randn_tensor", _server(owner, serve, original))  # noqa: B010
            yield
        finally:
            for module, original in originals.items():
                setattr(module, "randn_tensor", original)  # noqa: B010


def _server(owner: int, serve: Callable[[tuple[int, ...]], Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def randn_tensor(
        shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Any:
        if threading.get_ident() != owner:
            return original(shape, generator, device, dtype, layout)
        noise = serve(tuple(shape))
        return noise if dtype is None else noise.to(dtype)

    return randn_tensor


def _seed_of(noise: Latents) -> int:
    digest = hashlib.sha256(np.ascontiguousarray(noise).tobytes()).digest()
    return int.from_bytes(digest[:7], "little")
