"""Settings of the engine loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits and policy of an `Engine`.

    Attributes:
        max_waiting: The largest number of jobs that wait. A further one raises `QueueFullError`.
        max_waiting_bytes: The largest size of the input images of the jobs that wait.
        kept_jobs: The number of finished jobs whose results stay, for clients that ask later.
        kept_bytes: The largest size of these results.
        max_slots: The number of images that run together; None measures whether that is faster than one after another,
            up to the number of the backend.
    """

    max_waiting: int = 256
    max_waiting_bytes: int = 1 << 30
    kept_jobs: int = 256
    kept_bytes: int = 256 << 20
    max_slots: int | None = None
