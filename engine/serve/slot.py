"""A slot: one batch of a job on its way through the steps. It holds the next call of a network until it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends.session import NetworkCall, Outputs
from ..backends.slots import batch_key
from ..generator import ImageGenerator
from ..report.result import Event, Result
from ..stages.generation import Generation
from ..system import forks


class Slot:
    """The work of one batch of images of a job. Only the engine's thread uses it.

    Attributes:
        pending: The next call of a network; None once the work has ended.
        step: The steps that ended.
        total: All steps.
        images: The number of images.
        result: The result, once the work has ended.
    """

    def __init__(
        self, generator: ImageGenerator, part: Generation, index: int, show: Callable[[Slot, Event], None]
    ) -> None:
        """Take a part of a job, the one of this index. `show` gets each event of the work."""
        self.index = index
        self._work = generator.work(part)
        self._show = show
        self.pending: NetworkCall | None = None
        self.step, self.total, self.images = 0, part.total, len(part.request.seeds)
        self.preview: tuple[Any, ...] = ()
        self.result: Result | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What must agree in calls that run together."""
        return batch_key(self.call)

    @property
    def call(self) -> NetworkCall:
        """The next call of a network."""
        assert self.pending is not None
        return self.pending

    @property
    def has_ended(self) -> bool:
        """Whether there is no further call."""
        return self.pending is None

    def advance(self, outputs: Outputs | Exception | None) -> None:
        """Go on until the next call of a network, or the end. Raises the errors of a call of the pipeline.

        Args:
            outputs: Those of the pending call, or its error; None starts the work.
        """
        self.pending = None
        with forks.running():
            while True:
                try:
                    work = self._work
                    item = work.throw(outputs) if isinstance(outputs, Exception) else work.send(outputs)
                except StopIteration:
                    return
                outputs = None
                if isinstance(item, NetworkCall):
                    self.pending = item
                    return
                self.step, self.result = item.step, item.result
                self._show(self, item)

    def close(self) -> None:
        """End the work and free its memory."""
        self._work.close()
        self.pending = None
