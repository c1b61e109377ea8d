"""One denoising session: runs a network for all steps of a batch, and goes on if its component switches runners.

This module knows loaded components. It knows nothing of schedules or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .base import Array, Arrays, Runner, Session, inputs_of_call
from .component import LoadedComponent

Floats = NDArray[np.float32]


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
        self, component: LoadedComponent, constants: Arrays, timesteps: Array, *, guided: bool, cache_interval: int = 1
    ) -> None:
        self._component, self._constants = component, dict(constants)
        self._guided, self._cache_interval = guided, cache_interval
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._session: tuple[Runner, Session[Array]] | None = None

    def __call__(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, Array]:
        """Run one call, as `Session`, and return the outputs by name.

        Raises:
            BackendError: the backend failed; NotFiniteError: the outputs are not finite.
        """

        def inputs() -> dict[str, Array]:
            return inputs_of_call(self._constants, self._timesteps[call], sample, changing, guided=self._guided)

        def run(runner: Runner) -> dict[str, Array]:
            if self._session is None or self._session[0] is not runner:  # the first call, or another runner took over
                self._component.check(inputs())
                session = runner.session(
                    self._constants, self._timesteps, guided=self._guided, cache_interval=self._cache_interval
                )
                self._session = runner, session
            return self._session[1](call, sample, changing)

        return self._component.run_with_fallback(run, inputs)
