"""One call on its way from the arguments to the images, and what it gathers: times, and notes for the report."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from ..lora.lora import Lora
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import Sampler
from ..sampling.schedulers import SchedulerSpec
from ..system.trace import Stopwatch
from ..upscaling.upscaler import Upscaler


@dataclass(kw_only=True, eq=False)
class Generation:
    """A resolved request with its sampler. `stop` ends the work at the next step.

    `second` is the second pass of `hires`: a call of its own, whose steps are counted on from `earlier` calls.
    `upscaler` is the network that enlarges the image between them, if a file was named.
    """

    request: ResolvedRequest
    spec: SchedulerSpec
    sampler: Sampler
    stop: threading.Event
    guidance_scale: float = field(init=False)  # of the next call of the U-Net: a callback may change it
    pipeline: Any = None  # the one that runs it, for a callback
    calls: int | None = None  # of a sampler that stands for a schedule of more calls
    loras: tuple[Lora, ...] = ()
    watch: Stopwatch = field(default_factory=Stopwatch)
    notes: list[str] = field(default_factory=list)
    second: Generation | None = None
    earlier: int = 0
    upscaler: Upscaler | None = None

    @property
    def passes(self) -> tuple[Generation, ...]:
        """The call and its second pass."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def total(self) -> int:
        """The number of U-Net calls until the end of the last pass."""
        return self.earlier + sum(each.sampler.calls for each in self.passes)

    def __post_init__(self) -> None:
        self.guidance_scale = self.request.guidance_scale
