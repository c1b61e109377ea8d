"""One denoising session: runs a network for all steps of a batch. Backends may precompute what stays the same.

This module knows loaded components. It knows nothing of schedules or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import LoadedComponent
from .base import Arrays, Runner

Floats = NDArray[np.float32]
Calls = Any  # (call, sample [B, ...], changing inputs) -> outputs by name


@runtime_checkable
class SupportsSessions(Protocol):
    """A runner that can precompute what stays the same in all calls of a session."""

    def session(self, constants: Arrays, timesteps: NDArray[Any], *, guided: bool, cache_interval: int) -> Calls | None:
        """Return the session's calls, with the arguments of `DenoisingSession`; None if it can precompute nothing."""
        ...


class DenoisingSession:
    """The calls of a denoiser or a ControlNet for one batch.

    Args:
        component: the loaded network.
        constants: the inputs that stay the same, with a row for each row of the batch.
        timesteps: the timestep of each call.  # [calls]
        guided: the batch has two halves, for classifier-free guidance, which share the sample.
        cache_interval: the number of calls that share one computation of the deep layers; 1 shares nothing.
    """

    def __init__(
        self,
        component: LoadedComponent,
        constants: Arrays,
        timesteps: NDArray[Any],
        *,
        guided: bool,
        cache_interval: int = 1,
    ) -> None:
        self._component, self._constants = component, dict(constants)
        self._guided, self._cache_interval = guided, cache_interval
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._runner: Runner | None = None
        self._calls: Calls = None

    def __call__(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """Run one call and return the outputs by name.

        Args:
            call: the number of the call, from 0.
            sample: the latents.  # [B, C, h, w]
            changing: other inputs that change at every call.  # [B, ...], or [2B, ...] with guidance, as the outputs

        Raises:
            BackendError: the backend failed; NotFiniteError: the outputs are not finite.
        """
        return self._component.run_with_fallback(
            lambda runner: self._run(runner, call, sample, changing), lambda: self._inputs(call, sample, changing)
        )

    def _run(self, runner: Runner, call: int, sample: Floats, changing: Mapping[str, Floats]) -> Any:
        if self._runner is not runner:  # the first call, or the component switched to another runner
            self._component.check(self._inputs(call, sample, changing))
            self._runner = runner
            self._calls = None
            if isinstance(runner, SupportsSessions):
                guided, cache_interval = self._guided, self._cache_interval
                self._calls = runner.session(
                    self._constants, self._timesteps, guided=guided, cache_interval=cache_interval
                )
            if self._calls is None and self._cache_interval > 1:
                raise InputError(
                    f"cache_interval={self._cache_interval} needs the openvino backend in fp32, bf16 or int8: the "
                    f"U-Net runs on {runner.backend} in {runner.precision}. Remove it, or load with backend='openvino'."
                )
        if self._calls is not None:
            return self._calls(call, sample, changing)
        return runner(self._inputs(call, sample, changing))

    def _inputs(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """Return all inputs of one call of the network."""
        rows = np.concatenate([sample, sample]) if self._guided else sample
        return {
            "sample": rows,
            "timestep": np.full(len(rows), self._timesteps[call], dtype=np.float32),
            **self._constants,
            **changing,
        }
