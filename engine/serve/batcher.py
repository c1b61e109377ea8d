"""The loop's policy: which jobs start, and whose calls of the U-Net run together at the next step.

Jobs whose batch key agrees (network, sizes, ControlNets, weights) run together, those that rank first before others. A
job of other weights (LoRAs) starts when no job of its model runs any more; while it waits for that, later jobs of its
model wait too. So every job gets its turn.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from ..backends.slots import run_together
from ..errors import CalotypeError, Cancelled, first_line
from ..plan.plan import Plan
from ..system.memory import available_bytes, peak_bytes
from .catalog import ModelCatalog
from .costs import Costs
from .lane import Lane
from .observer import Observer
from .settings import EngineSettings
from .slot import Slot
from .ticket import Ticket

_LOG = logging.getLogger("calotype.serve")
_READY = 4  # times as many images may have a slot as run together: short jobs overtake long ones
_PATIENCE = 2.0  # times the seconds of a change of weights: how long a job lets others of the current weights pass


class Batcher:
    """The jobs that run. Only the engine's thread uses it, besides `images` and `left_s`."""

    def __init__(self, catalog: ModelCatalog, settings: EngineSettings, costs: Costs, observer: Observer) -> None:
        self._catalog, self._settings, self._costs = catalog, settings, costs
        self.observer = observer
        self.running: list[Ticket] = []
        self._lanes: dict[str, Lane] = {}

    @property
    def images(self) -> int:
        """The images that have a slot."""
        return sum(slot.images for ticket in tuple(self.running) for slot in tuple(ticket.slots))

    def left_s(self) -> float:
        """Return the expected seconds of work of the jobs that run."""
        return sum(ticket.work_s for ticket in tuple(self.running))

    def choose_new(self, waiting: Sequence[Ticket]) -> list[Ticket]:
        """Return the jobs that start now, of those that wait, in the order of their ranks."""
        chosen: list[Ticket] = []
        images, blocked = self.images, set[str]()
        weights = {name: lane.weights for name, lane in self._lanes.items() if lane.weights is not None}
        last = max((ticket.rank for ticket in self.running), default=0.0)
        for ticket in waiting:
            if not ticket.is_ready or ticket.model in blocked:
                continue
            width = self._width(ticket)
            overtakes = ticket.rank < last and images < _READY * width
            if images >= width and not overtakes:
                break
            if images and not self._has_room(ticket):
                break
            if weights.setdefault(ticket.model, ticket.weights) != ticket.weights:
                if not self._lets_others_pass(ticket):
                    blocked.add(ticket.model)
                continue
            chosen.append(ticket)
            images += min(width, ticket.images)
        return chosen

    def start(self, ticket: Ticket) -> None:
        """Give a job its first slots."""
        self.running.append(ticket)
        try:
            lane = self._lane(ticket.model)
            if changed_s := lane.enter(ticket.weights):
                self.observer.weights_changed(ticket.model, changed_s)
            ticket.lane = lane
            lane.tickets += 1
            ticket.start(self._largest(lane))
            self._open_slots(ticket)
        except Exception as failed:
            self._end(ticket, plain_error(failed))

    def step(self) -> bool:
        """Run one call of the U-Net for the jobs that rank first. Return whether a job ended."""
        before, began = len(self.running), time.monotonic()
        for ticket in tuple(self.running):
            if ticket.job.stop.is_set():
                status = ticket.job.status
                message = f"cancelled after {status.step} of {status.total} steps."
                self._end(ticket, Cancelled(message, step=status.step, total=status.total))
            elif ticket.is_late():
                self._end(ticket, ticket.late_error())
        batch = self._next_batch()
        if batch:
            outputs, reason = run_together([slot.call for _, slot in batch])
            first, images = batch[0][0], sum(slot.images for _, slot in batch)
            kind = first.kind  # a job that ends below has none
            if reason:
                _LOG.warning("calls of %d images ran one after another: %s", images, reason)
                self.observer.split(first.model, reason)
            for (ticket, slot), each in zip(batch, outputs, strict=True):
                self._advance(ticket, slot, each)
            taken_s = time.monotonic() - began
            self._costs.learn(kind, images, taken_s)
            self.observer.stepped(first.model, images, taken_s)
        return len(self.running) < before

    def end_all(self, error: CalotypeError) -> None:
        """End all running jobs with an error."""
        for ticket in tuple(self.running):
            self._end(ticket, error)

    def _next_batch(self) -> list[tuple[Ticket, Slot]]:
        """Return the slot that ranks first, and those after it whose calls can run together with its call."""
        ordered, ahead_s = sorted(self.running, key=lambda ticket: ticket.rank), 0.0
        for ticket in ordered:
            ahead_s += ticket.work_s
            ticket.eta_s = round(ahead_s, 1)
        ready = [(ticket, slot) for ticket in ordered for slot in ticket.slots]
        if not ready:
            return []
        (first, head), *_ = ready
        key, limit = head.key, head.images
        if len(ready) > 1 and (self._settings.max_slots is not None or self._costs.pays_together(first.kind)):
            limit = max(limit, self._width(first))
        batch: list[tuple[Ticket, Slot]] = []
        for ticket, slot in ready:
            if slot.key == key and slot.images <= limit:
                batch.append((ticket, slot))
                limit -= slot.images
        return batch

    def _advance(self, ticket: Ticket, slot: Slot, outputs: object) -> None:
        if ticket not in self.running:  # another slot of it has failed
            return
        try:
            slot.advance(outputs)  # type: ignore[arg-type]
            if slot.has_ended:
                ticket.leave(slot)
                self._open_slots(ticket)
        except Exception as failed:
            self._end(ticket, plain_error(failed))
            return
        if ticket.is_done:
            self._end(ticket)

    def _open_slots(self, ticket: Ticket) -> None:
        """Open slots of a job with several images, as many as run together."""
        while ticket.has_parts and len(ticket.slots) < self._width(ticket):
            ticket.open_slot()

    def _end(self, ticket: Ticket, error: CalotypeError | None = None) -> None:
        self.running.remove(ticket)
        ticket.end(error)
        lane = self._lanes.get(ticket.model)
        if lane is not None and ticket.lane is lane:
            lane.tickets -= 1
            lane.leave_if_idle()
        self._catalog.release(ticket.model)

    def _lane(self, model: str) -> Lane:
        pipe = self._catalog.loaded(model)
        assert pipe is not None  # each of its jobs holds it
        lane = self._lanes.get(model)
        if lane is None or lane.pipe is not pipe:
            lane = self._lanes[model] = Lane(model, pipe)
        return lane

    def _lets_others_pass(self, ticket: Ticket) -> bool:
        lane = self._lanes.get(ticket.model)
        change_s = 0.0 if lane is None else lane.change_s
        return time.monotonic() - ticket.job.arrival < _PATIENCE * change_s

    def _width(self, ticket: Ticket) -> int:
        """Return how many images run together."""
        if self._settings.max_slots is not None:
            return self._settings.max_slots
        return self._catalog.width(ticket.model)

    def _largest(self, lane: Lane) -> int | None:
        """Return the images of one slot: on a CPU one, so that jobs join and leave one by one."""
        return None if lane.on_gpu else 1

    def _has_room(self, ticket: Ticket) -> bool:
        """Return whether the memory is enough for one more image of this job."""
        free, call, pipe = available_bytes(), ticket.call, self._catalog.loaded(ticket.model)
        if free is None or call is None or pipe is None or self._catalog.on_gpu(ticket.model):
            return True
        plan: Plan = pipe.plan
        size = {"height": call.request.height, "width": call.request.width}
        sizes = plan.profile.sizes(batch=1, height=call.request.height, width=call.request.width)
        history = 4 * (call.total + 2) * math.prod(plan.latents.shape(sizes))
        return history + peak_bytes(plan.loads, batch=1, **size, guided=call.request.guided) < free


def plain_error(failed: Exception) -> CalotypeError:
    """Return an error that a client may see."""
    if isinstance(failed, CalotypeError):
        return failed
    _LOG.error("a job failed by an error of the program", exc_info=failed)
    return CalotypeError(f"internal error: {first_line(failed)}")
