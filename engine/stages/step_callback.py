"""`callback_on_step_end`: the caller's function after each step, with tensors that it may change, and interruption.

The scheduler runs its own code for such a call (`scheduler_loop`), so that the latents are diffusers' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..images.arrays import to_array
from ..request.callback import CONDITIONING, NEGATIVE
from ..sampling.scheduler_loop import SchedulerRun, SchedulerSampler
from .generation import Generation
from .unet import Unet


class StepPipeline:
    """The pipeline as a callback sees it: with the attributes of its call that diffusers' callbacks read and set.

    `_interrupt` ends the steps after this one, and `_guidance_scale` changes the guidance of the next ones.
    """

    def __init__(self, call: Generation, sampler: SchedulerSampler) -> None:
        self._call, self._interrupt = call, False
        self.num_timesteps, self.scheduler = sampler.calls, sampler.scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call.pipeline, name)

    @property
    def interrupt(self) -> bool:
        """Whether the callback has interrupted the call."""
        return self._interrupt

    @property
    def _guidance_scale(self) -> float:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        self._call.guidance_scale = float(value)

    guidance_scale = _guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next call of the U-Net also runs without the prompt."""
        return self._call.request.guided and self._call.guidance_scale > 1


class StepCallback:
    """The callback of one call."""

    def __init__(self, call: Generation, unet: Unet) -> None:
        assert isinstance(call.sampler, SchedulerSampler)
        self._call, self._unet, self._sampler = call, unet, call.sampler
        self._pipeline = StepPipeline(call, call.sampler)

    def __call__(self, i: int, run: Any) -> None:
        """Call the function after call i of the U-Net, and apply its changes. Raises `InputError`."""
        import torch

        assert isinstance(run, SchedulerRun)
        request, callback = self._call.request, self._call.request.callback
        assert callback is not None
        tensors = {name: torch.from_numpy(self._tensor(name, run)) for name in request.callback_tensors}
        timestep = self._sampler.scheduler.timesteps[self._sampler.timestep_slice.first + i]
        returned = callback(self._pipeline, i, timestep, tensors)
        if returned is not None and not isinstance(returned, dict):
            message = f"callback_on_step_end must return a dict of tensors or None, got {type(returned).__name__}."
            raise InputError(message, argument="callback_on_step_end", got=returned)
        changes = dict(returned or {})
        interrupted = changes.pop("interrupt", False) or self._pipeline.interrupt
        for name, value in changes.items():
            self._apply(name, value, run)
        if interrupted or vars(self._call.pipeline).get("_interrupt", False):
            self._call.notes.append(f"interrupted by the callback after {i + 1} of {run.calls} steps")
            run.interrupt()

    def _tensor(self, name: str, run: SchedulerRun) -> Any:
        if name == "latents":
            return run.current()
        array = self._unet.conditioning[CONDITIONING.get(name, "encoder_hidden_states")]
        count = len(self._call.request.seeds)
        return (array[: len(array) - count] if name == NEGATIVE else array).copy()

    def _apply(self, name: str, value: Any, run: SchedulerRun) -> None:
        if name == NEGATIVE:  # diffusers ignores it too: the U-Net takes the one tensor `prompt_embeds`
            return
        current = self._tensor(name, run) if name == "latents" or name in CONDITIONING else None
        array = to_array(value)
        matches = isinstance(array, np.ndarray) and current is not None and array.shape[1:] == current.shape[1:]
        count = len(self._call.request.seeds)
        lengths = {count} if name == "latents" else {1, count, 0 if current is None else len(current)}
        if not matches or len(array) not in lengths or not np.isfinite(array).all():
            got = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            expected = f"finite numbers {list(current.shape)}" if current is not None else f"{', '.join(CONDITIONING)}"
            message = f"callback_on_step_end returned {name} {got}; expected {expected}."
            raise InputError(message, argument="callback_on_step_end", got=got, expected=expected)
        array = array.astype(np.float32)
        if current is None or np.array_equal(array, current):
            return
        if name == "latents":
            run.replace(array)
        else:
            self._unet.replace(CONDITIONING[name], array)
