"""Every error that Calotype raises on purpose.

CalotypeError
├── InputError      an argument of a call is invalid: a prompt, a size, a step count
│   └── NoAttributeError  a pipeline has no attribute of this name; also an AttributeError
├── SourceError     a model or file cannot be read: missing, damaged, unsafe or not supported
├── BackendError    a backend cannot run: not installed, or no device
│   └── DeviceFullError  the memory of a GPU is too small for the weights or for an image of this size
├── SamplerError    a scheduler is unknown, or does not support a schedule
├── BuildError      a plan cannot be built: no memory or disk space, a crashed builder, a quality bound not met
├── CheckError      an artifact does not match the eager float32 reference
├── NotFiniteError  a network returned numbers that are not finite, and there is no higher precision to retry with
└── Cancelled       the generation was cancelled between two steps

A message says what failed, what was got, what is expected, and what to try. Errors of libraries are converted into
these classes.
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
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class CalotypeError(Exception):
    """The base class of all errors of Calotype."""

    def __str__(self) -> str:
        """Return the message on one line, escaped for terminals and logs: it may quote a stranger's file."""
        return printable(super().__str__())


class InputError(CalotypeError, ValueError):
    """An argument of a call is invalid."""


class NoAttributeError(InputError, AttributeError):
    """A pipeline has no attribute of this name."""


class SourceError(CalotypeError):
    """A model or file cannot be read."""


class BackendError(CalotypeError):
    """A backend cannot run on this machine."""


class DeviceFullError(BackendError):
    """The memory of a GPU is too small. It is freed again, so that a smaller request works afterwards."""


class SamplerError(CalotypeError, ValueError):
    """A scheduler is unknown, or does not support the requested schedule."""


class BuildError(CalotypeError):
    """A plan cannot be built."""


class CheckError(CalotypeError):
    """An artifact does not match the reference."""


class NotFiniteError(CalotypeError):
    """A network returned numbers that are not finite: its weights are damaged, or its precision is too low."""


class Cancelled(CalotypeError):
    """The generation was cancelled between two steps. The pipeline can generate again."""
