"""One call on its way from the arguments to the images, and what it gathers: times, and notes for the report."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..lora.lora import Lora
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import Sampler
from ..sampling.schedulers import SchedulerSpec
from ..system.trace import Stopwatch


@dataclass(kw_only=True, eq=False)
class Generation:
    """A resolved request with its sampler. `stop` ends the work at the next step."""

    request: ResolvedRequest
    spec: SchedulerSpec
    sampler: Sampler
    stop: threading.Event
    calls: int | None = None  # of a sampler that stands for a schedule of more calls
    loras: tuple[Lora, ...] = ()
    watch: Stopwatch = field(default_factory=Stopwatch)
    notes: list[str] = field(default_factory=list)
