"""Running a scheduler of diffusers itself, for the few that cannot be a matrix.

Every picture of a batch gets a scheduler of its own. So no picture depends on its neighbors, whatever the scheduler
does with a batch: thresholds over it, or grows one Brownian tree for all of it. The scheduler's `randn_tensor` is
served from the run's own `draw`; a scheduler that draws otherwise (DPM-Solver SDE's Brownian tree, torch's global
generator) is seeded for each picture, so that the picture is still a function of its seed.

torch and diffusers are imported only when something here is called.
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
from .matrix import Draw, Latents, SourceLatents, check_original, check_shape, check_step_order
from .schedule_range import ScheduleRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["SchedulerRun", "SchedulerSampler", "TimestepSlice", "served_draws"]

_PATCHING = forks.Lock(threading.RLock)


@dataclass(frozen=True, kw_only=True)
class TimestepSlice:
    """The part of a scheduler's timesteps that a course comes to: `calls` of them from `first` on."""

    course: ScheduleRange
    first: int
    calls: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SchedulerSampler:
    """A schedule that the scheduler itself must run.

    Attributes:
        name: what reports call it.
        reason: why it is no matrix, in words for the report.
        timesteps: what the network is told at each call. float64 [calls].
        preview: the clean latents as estimated at call i are `a * input + b * output`. float64 [calls, 2].
        scheduler: a diffusers scheduler with its timesteps set, standing before the first call; it is copied for every
            picture.
        stretch: which of the scheduler's timesteps these are.
    """

    name: str
    reason: str
    timesteps: NDArray[np.float64]
    preview: NDArray[np.float64]
    scheduler: Any
    stretch: TimestepSlice

    @property
    def calls(self) -> int:
        """How often the network is called."""
        return int(self.timesteps.size)

    def run(
        self, noise: Latents, draw: Draw, *, seeds: Sequence[int] | None = None, original: SourceLatents | None = None
    ) -> SchedulerRun:
        """Start a batch from standard-normal noise [B, C, H, W]; see `SchedulerRun`."""
        course = self.stretch.course
        check_original(original, takes=course.takes_latents, masked=course.preserves_unmasked, shape=noise.shape)
        return SchedulerRun(self, noise, draw, seeds=seeds, original=original)


class SchedulerRun:
    """One batch through a `SchedulerSampler`, in float32.

    Args:
        sampler: the schedule.
        noise: standard-normal noise, [B, C, H, W].
        draw: hands out the noise that the scheduler asks of `randn_tensor`, of the same shape.
        seeds: one for each picture, for noise that the scheduler draws by other means. Without them they are made
            from the noise of each picture, so that the same noise still gives the same picture.
        original: the picture that it sets out from, where the course has one.
    """

    def __init__(
        self,
        sampler: SchedulerSampler,
        noise: Latents,
        draw: Draw,
        *,
        seeds: Sequence[int] | None = None,
        original: SourceLatents | None = None,
    ) -> None:
        if seeds is not None and len(seeds) != len(noise):
            raise SamplerError(f"There are {len(seeds)} seeds for {len(noise)} pictures.")
        self._sampler = sampler
        self._draw = draw
        self._original = original
        self._draws: list[Latents] = []
        own = [_seed_of(picture) for picture in noise] if seeds is None else seeds
        self._pictures = [_Picture(sampler, i, noise[i : i + 1], seed, original) for i, seed in enumerate(own)]
        self._input: Latents | None = None  # of the next call, once it was asked for
        self._last: tuple[Latents, Latents] | None = None  # input and output of the last call
        self._pushed = 0

    def input(self, i: int) -> Latents:
        """What the network is given at call i. float32 [B, C, H, W].

        Raises:
            SamplerError: i is not the next call.
        """
        check_step_order(i == self._pushed < self._sampler.calls, f"input({i})", self._pushed)
        if self._input is None:
            self._input = np.concatenate([picture.input(i) for picture in self._pictures])
        return self._input.copy()

    def push(self, i: int, output: Latents) -> None:
        """Take what the network answered to input i, after guidance. [B, C, H, W].

        Raises:
            SamplerError: i is not the next call, or the shape is not that of the noise.
        """
        check_step_order(i == self._pushed < self._sampler.calls, f"push({i})", self._pushed)
        self._last = (self.input(i), np.array(output, dtype=np.float32))
        check_shape("output of the network", output.shape, self._last[0].shape)
        for picture, answer in zip(self._pictures, self._last[1], strict=True):
            picture.step(i, answer[np.newaxis], self._draw_at)
        self._input = None
        self._pushed += 1

    def latents(self) -> Latents:
        """The final latents. float32 [B, C, H, W].

        Raises:
            SamplerError: a call is still missing.
        """
        check_step_order(self._pushed == self._sampler.calls, "latents()", self._pushed)
        return np.concatenate([picture.latents.numpy().astype(np.float32) for picture in self._pictures])

    def preview(self, i: int) -> Latents:
        """The clean latents as they look from call i. float32 [B, C, H, W].

        Raises:
            SamplerError: i is not the last call pushed.
        """
        check_step_order(0 <= i == self._pushed - 1, f"preview({i})", self._pushed)
        assert self._last is not None
        of_input, of_output = self._sampler.preview[i]
        seen = np.asarray(of_input * self._last[0] + of_output * self._last[1], dtype=np.float32)
        if self._original is None or self._original.inpaint_mask is None:
            return seen
        return np.where(self._original.inpaint_mask, seen, self._original.latents)

    def _draw_at(self, number: int) -> Latents:
        while len(self._draws) <= number:
            self._draws.append(self._draw())
        return self._draws[number]


class _Picture:
    """One picture of the batch: its own scheduler, its own latents, its own random state."""

    def __init__(
        self, sampler: SchedulerSampler, index: int, noise: Latents, seed: int, original: SourceLatents | None
    ) -> None:
        import torch

        self._index = index
        self._stretch = sampler.stretch
        self._noise = torch.from_numpy(noise.copy())  # [1, C, H, W]
        self._clean = None if original is None else torch.from_numpy(original.latents[index : index + 1].copy())
        inpaint_mask = None if original is None else original.inpaint_mask
        self._inpaint_mask = None if inpaint_mask is None else torch.from_numpy(inpaint_mask[index : index + 1].copy())
        self._scheduler = copy.deepcopy(sampler.scheduler)
        if getattr(self._scheduler, "noise_sampler_seed", 0) is None:
            self._scheduler.noise_sampler_seed = seed
        self._options: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(seed)
        if "generator" in inspect.signature(self._scheduler.step).parameters:
            self._options["generator"] = generator
        self._random = generator.get_state()
        self._drawn = 0
        self.latents = prepare_latents(self._scheduler, self._stretch, self._noise, self._clean)  # [1, C, H, W]

    def input(self, i: int) -> Latents:
        latents = self._scheduler.scale_model_input(self.latents, self._scheduler.timesteps[self._stretch.first + i])
        return np.asarray(latents.numpy(), dtype=np.float32)

    def step(self, i: int, output: Latents, draw_at: Callable[[int], Latents]) -> None:
        import torch

        def serve(shape: tuple[int, ...]) -> Any:
            drawn = draw_at(self._drawn)[self._index : self._index + 1]
            check_shape("draw of noise", drawn.shape, shape)
            self._drawn += 1
            return torch.from_numpy(drawn.copy())

        with served_draws(self._scheduler, serve), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            given = torch.from_numpy(output)
            self.latents = scheduler_step(
                self._scheduler, self._stretch.first + i, given, self.latents, **self._options
            )
            self._random = torch.get_rng_state()
        if self._inpaint_mask is not None and self._clean is not None:
            stays = self._clean
            if i + 1 < self._stretch.calls:
                stays = with_noise(self._scheduler, self._stretch, i + 1, self._noise, self._clean)
            self.latents = torch.where(self._inpaint_mask, self.latents, stays)


def prepare_latents(scheduler: Any, stretch: TimestepSlice, noise: Any, clean: Any) -> Any:
    """The latents before the first call, as diffusers' pipelines make them."""
    if stretch.course.origin == "noise":
        return noise * scheduler.init_noise_sigma
    return clean if stretch.course.origin == "latents" else with_noise(scheduler, stretch, 0, noise, clean)


def with_noise(scheduler: Any, stretch: TimestepSlice, i: int, noise: Any, clean: Any) -> Any:
    """The clean latents with the noise of call i, which the scheduler stands before."""
    return scheduler.add_noise(clean, noise, scheduler.timesteps[stretch.first + i].reshape(1))


def scheduler_step(scheduler: Any, i: int, output: Any, latents: Any, **options: Any) -> Any:
    """The latents after call i, whether `step` answers with a tuple or with an object."""
    answer = scheduler.step(output, scheduler.timesteps[i], latents, **options)
    return answer.prev_sample if hasattr(answer, "prev_sample") else answer[0]


@contextmanager
def served_draws(scheduler: Any, serve: Callable[[tuple[int, ...]], Any]) -> Iterator[None]:
    """Let `serve(shape)` answer in place of `randn_tensor`, for this scheduler's code on this thread.

    The function is replaced in the modules of the scheduler's class and its bases. One thread at a time does so; to
    every other thread the replaced function is the old one.
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
