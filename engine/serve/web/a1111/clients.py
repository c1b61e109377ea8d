"""What the server knows of a client between its requests: its options, and its jobs by `force_task_id`.

AUTOMATIC1111 has one user, whose options are global. Here they belong to an API key or to an address, so that nobody
changes the model of another user's images.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request

from ...job import Job
from ..service import Service

_MOST = 1000  # clients; beyond that, the options of those that have not come for longest are forgotten


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Options that a client has set; they hold for its later requests.

    Attributes:
        model: The name of its model; None is the server's default.
        clip_stop: AUTOMATIC1111's "CLIP_stop_at_last_layers": 1 uses all layers.
    """

    model: str | None = None
    clip_stop: int = 1


class Clients:
    """Options and named jobs of all clients."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._options: OrderedDict[str, ClientOptions] = OrderedDict()
        self._tasks: WeakValueDictionary[tuple[str, str], Job] = WeakValueDictionary()

    def options(self, http: Request) -> ClientOptions:
        """Return the options of a request's client."""
        owner = self._service.owner_of(http)
        options = self._options.get(owner, ClientOptions())
        if owner in self._options:
            self._options.move_to_end(owner)
        return options

    def set_options(self, http: Request, **changes: Any) -> None:
        """Change options of a request's client."""
        self._options[self._service.owner_of(http)] = replace(self.options(http), **changes)
        while len(self._options) > _MOST:
            self._options.popitem(last=False)

    def name_job(self, http: Request, task: str, job: Job) -> None:
        """Remember the job of a task's id."""
        self._tasks[self._service.owner_of(http), task] = job

    def job_of(self, http: Request, task: str) -> Job | None:
        """Return the client's job of a task's id."""
        return self._tasks.get((self._service.owner_of(http), task))
