"""One denoising session: runs a network for all steps of a batch, and goes on if its component switches runners.

This module knows loaded components. It knows nothing of schedules or prompts.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..plan.image_prompts.style import STYLE
from .base import Array, Arrays, Runner, Session, inputs_of_call
from .component import LoadedComponent

Floats = NDArray[np.float32]
Outputs: TypeAlias = dict[str, Array]  # by name
T = TypeVar("T")


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
        self.component, self._constants = component, dict(constants)
        self._guided, self.cache_interval = guided, cache_interval
        self.coupled = bool(np.any(self._constants.get(STYLE, 0)))  # whether rows see other rows
        self._timesteps = np.asarray(timesteps, dtype=np.float32)
        self._session: tuple[Runner, Session[Array]] | None = None
        self.constant_shapes = tuple((name, array.shape[1:]) for name, array in sorted(constants.items()))

    def __call__(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, Array]:
        """Run one call, as `Session`, and return the outputs by name.

        Raises:
            BackendError: the backend failed; NotFiniteError: the outputs are not finite.
        """

        def run(runner: Runner) -> dict[str, Array]:
            return self.on(runner, call, sample, changing)(call, sample, changing)

        return self.component.run_with_fallback(run, lambda: self.inputs(call, sample, changing))

    def inputs(self, call: int, sample: Floats, changing: Mapping[str, Floats]) -> dict[str, Array]:
        """Return all inputs of one call of the network.  # [N, ...]"""
        return inputs_of_call(self._constants, self._timesteps[call], sample, changing, guided=self._guided)

    def on(self, runner: Runner, call: int, sample: Floats, changing: Mapping[str, Floats]) -> Session[Array]:
        """Return the session on a runner. The first call, and one after another runner took over, opens it."""
        if self._session is None or self._session[0] is not runner:
            self.component.check(self.inputs(call, sample, changing))
            session = runner.session(
                self._constants, self._timesteps, guided=self._guided, cache_interval=self.cache_interval
            )
            self._session = runner, session
        return self._session[1]


class NetworkCall(NamedTuple):
    """A call of a session that is ready: it runs alone, or together with calls of other sessions."""

    session: DenoisingSession
    call: int  # its number, from 0
    sample: Floats  # [B, C, h, w]
    changing: Mapping[str, Floats]  # [N, ...]

    def run(self) -> Outputs:
        """Run it alone. Raises as `DenoisingSession`."""
        return self.session(self.call, self.sample, self.changing)


# Work that yields each call of a network when it is ready, and takes its outputs: somebody else runs it.
NetworkCalls: TypeAlias = Generator[NetworkCall, Outputs, T]


def run_for(work: Generator[Any, Any, Any], call: NetworkCall) -> Outputs:
    """Run a call alone, and return its outputs. An error is raised inside the work that yielded it."""
    try:
        return call.run()
    except BaseException as failed:
        work.throw(failed)
        raise


def completed(work: NetworkCalls[T]) -> T:
    """Run work with each of its calls alone, and return its value."""
    outputs: Outputs | None = None
    while True:
        try:
            call = work.send(outputs)  # type: ignore[arg-type]  # None starts it
        except StopIteration as ended:
            value: T = ended.value
            return value
        outputs = run_for(work, call)
