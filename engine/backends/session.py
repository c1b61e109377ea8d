"""The calls of one network for one batch, in which little changes: backends that can compute the rest once do so.

Knows what an opened component is; knows nothing of steps, schedules or prompts.
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
    """A runner that makes something of what stays the same."""

    def session(self, given: Arrays, timesteps: NDArray[Any], *, guided: bool, cache_interval: int) -> Calls | None:
        """As `DenoisingSession`; None where it makes nothing of it."""
        ...


class DenoisingSession:
    """A denoiser's or a ControlNet's calls for one batch.

    Args:
        opened: the component.
        given: its inputs that stay, with a row for each row of the batch.
        timesteps: of every call.  # [calls]
        twice: the batch has two halves, of guidance, with the same sample.
        reuses: for how many calls the deep layers' numbers serve; 1 computes them at every call.
    """

    def __init__(
        self, opened: LoadedComponent, given: Arrays, timesteps: NDArray[Any], *, guided: bool, cache_interval: int = 1
    ) -> None:
        self._opened, self._given, self._guided, self._cache_interval = opened, dict(given), guided, cache_interval
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._runner: Runner | None = None
        self._calls: Calls = None

    def __call__(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """The outputs by name.  # sample [B, C, h, w]; what changes besides, and the outputs: [B, ...] or [2B, ...]

        Raises `BackendError`, `NotFiniteError`.
        """
        return self._opened.run_with_fallback(
            lambda runner: self._run(runner, call, sample, changing), lambda: self._inputs(call, sample, changing)
        )

    def _run(self, runner: Runner, call: int, sample: Floats, changing: Mapping[str, Floats]) -> Any:
        if self._runner is not runner:  # the first call, or another artifact took over
            self._opened.check(self._inputs(call, sample, changing))
            self._runner = runner
            self._calls = None
            if isinstance(runner, SupportsSessions):
                halves, cache_interval = self._guided, self._cache_interval
                self._calls = runner.session(self._given, self._timesteps, guided=halves, cache_interval=cache_interval)
            if self._calls is None and self._cache_interval > 1:
                raise InputError(
                    f"cache_interval={self._cache_interval} needs the openvino backend in fp32, bf16 or int8; the U-Net runs "
                    f"on {runner.backend} in {runner.precision}. Leave it out, or load with backend='openvino'."
                )
        if self._calls is not None:
            return self._calls(call, sample, changing)
        return runner(self._inputs(call, sample, changing))

    def _inputs(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """As the network itself has them."""
        rows = np.concatenate([sample, sample]) if self._guided else sample
        return {
            "sample": rows,
            "timestep": np.full(len(rows), self._timesteps[call], dtype=np.float32),
            **self._given,
            **changing,
        }
