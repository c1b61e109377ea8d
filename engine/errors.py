"""Every error that Calotype raises on purpose.

CalotypeError
├── InputError      an argument of a call is wrong: a prompt, a size, a step count
├── SourceError     the model cannot be read: missing, broken, unsafe, or not one we know
├── BackendError    a backend cannot run: not installed, or no such device
├── SamplerError    the scheduler is unknown, or cannot make this schedule
├── CheckError      an artefact does not agree with the eager float32 reference
└── Cancelled       the picture was cancelled between two steps

A message says what was wanted, what was got, what is allowed, and the next step. No library's bare error
reaches the user.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CalotypeError",
    "Cancelled",
    "CheckError",
    "InputError",
    "SamplerError",
    "SourceError",
]


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class CalotypeError(Exception):
    """The root of the tree: catch it to catch all of ours."""


class InputError(CalotypeError, ValueError):
    """An argument of a call is wrong."""


class SourceError(CalotypeError):
    """A model cannot be read."""


class BackendError(CalotypeError):
    """A backend cannot run here."""


class SamplerError(CalotypeError, ValueError):
    """A scheduler is unknown or cannot make the schedule asked for."""


class CheckError(CalotypeError):
    """An artefact does not agree with the reference."""


class Cancelled(CalotypeError):
    """The picture was cancelled between two steps; the pipeline is good for the next one."""
