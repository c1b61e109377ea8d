"""A lane: one open model with the weights that its running jobs share, for as long as one runs."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import NamedTuple

from ..pipeline import Pipeline
from .catalog import Loras


class Weights(NamedTuple):
    """The LoRAs that jobs must share to run together, and their scale."""

    loras: Loras
    scale: float


class Lane:
    """Runs jobs of one model. Changes its weights while no job runs. Only the engine's thread uses it."""

    def __init__(self, name: str, pipe: Pipeline) -> None:
        self.name, self.pipe = name, pipe
        self.tickets = 0  # jobs that run
        self.weights: Weights | None = None  # of the running jobs
        self.change_s = 1.0  # how long the last change of weights took
        self._held = ExitStack()

    @property
    def on_gpu(self) -> bool:
        """Whether the U-Net runs on a GPU."""
        return self.pipe._components.on_gpu

    def enter(self, weights: Weights) -> float:
        """Prepare the weights for a job that starts. Returns the seconds of a change, and 0 if there is none.

        Raises:
            SourceError: A LoRA does not fit the model.
            BackendError: The backend cannot change the weights.
        """
        if self.weights == weights:
            return 0.0
        began, loras, generator = time.monotonic(), list(weights.loras), self.pipe._generator
        changes = [(lora.path, lora.weight) for lora in generator.loras.loras] != loras
        if changes:
            generator.loras.set(loras)
        self._held.enter_context(generator.loras.lock_weights(weights.scale))
        self.weights = weights
        if not changes:
            return 0.0
        self.change_s = time.monotonic() - began
        return self.change_s

    def leave_if_idle(self) -> None:
        """Let the weights change once no job runs."""
        if not self.tickets and self.weights is not None:
            self._held.close()
            self.weights = None
