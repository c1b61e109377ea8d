"""Every error that Calotype raises on purpose.

CalotypeError
├── InputError      an argument of a call is wrong: a prompt, a size, a step count
│   └── NoAttributeError  a pipeline has no attribute of this name; an AttributeError as well
├── SourceError     the model cannot be read: missing, broken, unsafe, or not one we know
├── BackendError    a backend cannot run: not installed, or no such device
│   └── DeviceFullError  a GPU has no room for the weights, or for a picture of this size
├── SamplerError    the scheduler is unknown, or cannot make this schedule
├── BuildError      a plan cannot be built: no room, a builder that died, a precision that misses its gate
├── CheckError      an artifact does not agree with the eager float32 reference
├── NotFiniteError  a network's numbers are not finite, and no higher precision is at hand
└── Cancelled       the picture was cancelled between two steps

A message says what was wanted, what was got, what is allowed, and the next step. No library's bare error
reaches the user.
"""

from __future__ import annotations

from .printable import printable

__all__ = [
    "BackendError",
    "BuildError",
    "CalotypeError",
    "Cancelled",
    "CheckError",
    "DeviceFullError",
    "InputError",
    "NoAttributeError",
    "NotFiniteError",
    "SamplerError",
    "SourceError",
]


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class CalotypeError(Exception):
    """The root of the tree: catch it to catch all of ours."""

    def __str__(self) -> str:
        """The message on one line, safe to print or log: it may quote names out of a stranger's file."""
        return printable(super().__str__())


class InputError(CalotypeError, ValueError):
    """An argument of a call is wrong."""


class NoAttributeError(InputError, AttributeError):
    """A pipeline has no attribute of this name."""


class SourceError(CalotypeError):
    """A model cannot be read."""


class BackendError(CalotypeError):
    """A backend cannot run here."""


class DeviceFullError(BackendError):
    """A GPU has no room. What did not fit is let go of; the next, smaller request works."""


class SamplerError(CalotypeError, ValueError):
    """A scheduler is unknown or cannot make the schedule asked for."""


class BuildError(CalotypeError):
    """A plan cannot be built."""


class CheckError(CalotypeError):
    """An artifact does not agree with the reference."""


class NotFiniteError(CalotypeError):
    """A network's numbers are not finite: its weights are damaged, or its precision is too low for the model."""


class Cancelled(CalotypeError):
    """The picture was cancelled between two steps; the pipeline is good for the next one."""
