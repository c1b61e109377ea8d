"""The calls of one network for one batch, in which little changes: backends that can compute the rest once do so.

Knows what an opened component is; knows nothing of steps, schedules or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import Opened
from .base import Arrays, Runner

Floats = NDArray[np.float32]
Calls = Any  # (call, sample [B, ...], changing inputs) -> outputs by name


@runtime_checkable
class Serial(Protocol):
    """A runner that makes something of what stays the same."""

    def series(self, given: Arrays, timesteps: NDArray[Any], *, twice: bool, reuses: int) -> Calls | None:
        """As `Series`; None where it makes nothing of it."""
        ...


class Series:
    """A denoiser's or a ControlNet's calls for one batch.

    Args:
        opened: the component.
        given: its inputs that stay, with a row for each row of the batch.
        timesteps: of every call.  # [calls]
        twice: the batch has two halves, of guidance, with the same sample.
        reuses: for how many calls the deep layers' numbers serve; 1 computes them at every call.
    """

    def __init__(self, opened: Opened, given: Arrays, timesteps: NDArray[Any], *, twice: bool, reuses: int = 1) -> None:
        self._opened, self._given, self._twice, self._reuses = opened, dict(given), twice, reuses
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._runner: Runner | None = None
        self._calls: Calls = None

    def __call__(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """The outputs by name.  # sample [B, C, h, w]; what changes besides, and the outputs: [B, ...] or [2B, ...]

        Raises `BackendError`, `NotFiniteError`.
        """
        return self._opened.tried(
            lambda runner: self._run(runner, call, sample, changing), lambda: self._inputs(call, sample, changing)
        )

    def _run(self, runner: Runner, call: int, sample: Floats, changing: Mapping[str, Floats]) -> Any:
        if self._runner is not runner:  # the first call, or another artefact took over
            self._opened.check(self._inputs(call, sample, changing))
            self._runner = runner
            self._calls = None
            if isinstance(runner, Serial):
                halves, reuses = self._twice, self._reuses
                self._calls = runner.series(self._given, self._timesteps, twice=halves, reuses=reuses)
            if self._calls is None and self._reuses > 1:
                raise InputError(
                    f"cache_interval={self._reuses} is for the openvino backend in fp32, bf16 or int8, and the U-Net "
                    f"runs on {runner.backend} in {runner.precision}: leave it out, or load with backend='openvino'."
                )
        if self._calls is not None:
            return self._calls(call, sample, changing)
        return runner(self._inputs(call, sample, changing))

    def _inputs(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """As the network itself has them."""
        rows = np.concatenate([sample, sample]) if self._twice else sample
        return {
            "sample": rows,
            "timestep": np.full(len(rows), self._timesteps[call], dtype=np.float32),
            **self._given,
            **changing,
        }
