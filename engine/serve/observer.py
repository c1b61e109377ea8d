"""What a service may count: the engine calls an observer after each step. An observer must return at once."""

from __future__ import annotations

from dataclasses import dataclass


class Observer:
    """Takes notice of nothing. A subclass overrides what it needs; the engine's thread calls it."""

    def stepped(self, model: str, images: int, seconds: float) -> None:
        """Take notice of one call of the U-Net for some images."""

    def split(self, model: str, reason: str) -> None:
        """Take notice of images that ran one after another because their common call failed."""

    def weights_changed(self, model: str, seconds: float) -> None:
        """Take notice of a change of LoRAs."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine at one moment.

    Attributes:
        waiting: Jobs that wait.
        running: Jobs that run.
        waiting_bytes: The size of the input images of those that wait.
        batches: Images that have a slot, running or ready to run.
    """

    waiting: int
    running: int
    waiting_bytes: int
    batches: int
