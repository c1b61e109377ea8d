"""A ticket: a job inside the engine, with its checked call, its weights, and its rank."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CalotypeError, Cancelled, DeadlineError
from ..pipeline import Pipeline
from ..report.result import Event, Result, joined
from ..stages.generation import Generation
from .catalog import ModelCatalog
from .costs import Costs, rank_of
from .job import Job
from .lane import Lane, Weights
from .slot import Slot


class Ticket:
    """A job on its way through the engine.

    Attributes:
        call: The checked call; None until its model is open.
        weights: The LoRAs that it needs.
        slots: Those of its batches that run.
    """

    def __init__(self, job: Job, model: str, catalog: ModelCatalog, costs: Costs) -> None:
        """Take a job of a model. Raises `InputError` for LoRAs that the catalog does not have."""
        self.job, self.model = job, model
        self._catalog, self._costs = catalog, costs
        self.prompt, self._named = catalog.without_tags(job.request.prompt)
        loras = job.request.loras
        self._loras = None if loras is None else catalog.lora_files(loras)
        self.image_bytes = sum(_bytes(value) for value in job.request.arguments.values())
        timeout = job.request.timeout_s
        self.deadline = None if timeout is None else job.arrival + timeout
        self.call: Generation | None = None
        self.weights = Weights((), 1.0)
        self.slots: list[Slot] = []
        self.lane: Lane | None = None
        self.eta_s: float | None = None
        self._parts: deque[Generation] = deque()  # without a slot so far
        self._count = 0  # of all parts
        self._left_steps = 0  # of slots that have ended
        self._results: dict[int, Result] = {}

    def check(self, pipe: Pipeline) -> None:
        """Check the arguments against the open model.

        Raises:
            InputError: An argument is invalid.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
        """
        call = pipe._generator.start(self.prompt, self.job.request.arguments, self.job.stop)
        call.pipeline = pipe
        loras = self._catalog.own_loras(self.model) if self._loras is None else self._loras
        self.weights = Weights(loras + self._named, call.request.lora_scale)
        self.call = call
        self.job.update(total=call.total * len(call.request.seeds))

    @property
    def kind(self) -> tuple[object, ...]:
        """What the cost of a step depends on."""
        request = None if self.call is None else self.call.request
        return (self.model,) if request is None else (self.model, request.height, request.width, request.rows)

    @property
    def work_s(self) -> float:
        """The expected seconds of the steps that are left."""
        status = self.job.status
        return (status.total - status.step) * self._costs.step_s(self.kind)

    @property
    def rank(self) -> float:
        """Where the job stands; the lowest runs first."""
        total_s = self.job.status.total * self._costs.step_s(self.kind)
        return rank_of(self.job.arrival, total_s, self.job.request.priority)

    @property
    def images(self) -> int:
        """The number of images."""
        return 1 if self.call is None else len(self.call.request.seeds)

    @property
    def is_ready(self) -> bool:
        """Whether the job may start."""
        return self.call is not None

    def is_late(self) -> bool:
        """Return whether its time is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def late_error(self) -> DeadlineError:
        """Return why a late job ends."""
        status, limit = self.job.status, self.job.request.timeout_s
        message = f"the job did not end within {limit:g} s: {status.step} of {status.total} steps were done."
        return DeadlineError(message, step=status.step, total=status.total)

    def start(self, largest: int | None) -> None:
        """Divide the job into batches of at most `largest` images. Its lane is set."""
        assert self.call is not None
        assert self.lane is not None
        largest = None if self.call.request.generators else largest  # one generator draws for all images in order
        self._parts = deque(self.lane.pipe._generator.parts(self.call, largest))
        self._count = len(self._parts)
        self.job.update(state="running", place=0, total=sum(part.total for part in self._parts))

    @property
    def has_parts(self) -> bool:
        """Whether a batch has no slot yet."""
        return bool(self._parts)

    @property
    def is_done(self) -> bool:
        """Whether all batches have ended."""
        return not self._parts and not self.slots

    def open_slot(self) -> None:
        """Begin the next batch: its images, noise and text. Raises the errors of a call of the pipeline."""
        assert self.lane is not None
        index = self._count - len(self._parts)
        slot = Slot(self.lane.pipe._generator, self._parts.popleft(), index, self._show)
        self.slots.append(slot)
        slot.advance(None)

    def leave(self, slot: Slot) -> None:
        """Take the result of a slot that has ended."""
        assert slot.result is not None
        self._results[slot.index] = slot.result
        self._left_steps += slot.step
        self.slots.remove(slot)

    def end(self, error: CalotypeError | None = None) -> None:
        """End the job with an error, or with the results of its batches."""
        for slot in self.slots:
            slot.close()
        self.slots, self.call = [], None
        self._parts.clear()
        if error is None:
            results = [self._results[i] for i in range(self._count)]
            self.job.update(state="done", result=results[0] if self._count == 1 else joined(results), eta_s=0.0)
        else:
            cancelled = isinstance(error, Cancelled) and not isinstance(error, DeadlineError)
            self.job.update(state="cancelled" if cancelled else "failed", error=error, eta_s=None)
        self._results = {}

    def _show(self, slot: Slot, event: Event) -> None:
        """Tell the clients of a step."""
        changes: dict[str, Any] = {"step": self._left_steps + sum(each.step for each in self.slots)}
        every = self.job.request.preview_every
        if every and event.step % every == 0 and event.result is None:
            slot.preview = tuple(event.preview())
            changes["preview"] = tuple(image for each in self.slots for image in each.preview)
            changes["preview_step"] = changes["step"]
        self.job.update(**changes, eta_s=self.eta_s)


def _bytes(value: Any) -> int:
    """Return the size of an argument's images."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if hasattr(value, "getbands"):  # an image of PIL
        return int(value.width * value.height * len(value.getbands()))
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else 0
