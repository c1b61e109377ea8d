"""Every error that Calotype raises on purpose, and the data of each.

CalotypeError
├── InputError      an argument of a call is invalid: a prompt, a size, a step count
│   │               argument, got, expected
│   └── NoAttributeError  a pipeline has no attribute of this name; also an AttributeError
│                   name
├── SourceError     a model or file cannot be read: missing, damaged, unsafe or not supported
│                   path, field
├── BackendError    a backend cannot run: not installed, or no device
│   │               backend, component
│   └── DeviceFullError  the memory of a GPU is too small for the weights or for an image of this size
│                   hint, free_bytes
├── SamplerError    a scheduler is unknown, or does not support a schedule
│                   scheduler, steps
├── BuildError      a plan cannot be built: no memory or disk space, a crashed builder, a quality bound not met
│                   backend, component, hint
├── CheckError      an artifact does not match the eager float32 reference
│                   backend, component, relative_error, limit
├── NotFiniteError  a network returned numbers that are not finite, and there is no higher precision to retry with
│                   backend, component, precision, step
├── QueueFullError  a server has no room for another job
│                   waiting, limit, retry_after_s
└── Cancelled       the generation was cancelled between two steps
    │               step, total
    └── DeadlineError  it did not end within its time
                    step, total

A message says what failed, what was got, what is expected, and what to try. Programs read the attributes in the second
lines: each is None where it is unknown, and `data` has the known ones. Errors of libraries are converted into these
classes. All can be pickled.

    try:
        pipe(prompt, width=100)
    except calotype.InputError as error:
        print(error.argument, error.got, error.data)  # width 100 {'argument': 'width', 'got': 100, ...}
"""

from __future__ import annotations

import functools
import reprlib
from pathlib import Path
from typing import Any

from .printable import printable

__all__ = [
    "BackendError",
    "BuildError",
    "CalotypeError",
    "Cancelled",
    "CheckError",
    "DeadlineError",
    "DeviceFullError",
    "InputError",
    "NoAttributeError",
    "NotFiniteError",
    "QueueFullError",
    "SamplerError",
    "SourceError",
]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class CalotypeError(Exception):
    """The base class of all errors of Calotype."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    @property
    def data(self) -> dict[str, Any]:
        """The attributes of this error that are known, by name."""
        names = getattr(type(self).__init__, "__kwdefaults__", None) or ()
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        """Return the message on one line, escaped for terminals and logs: it may quote a stranger's file."""
        return printable(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self.data), self.args


class InputError(CalotypeError, ValueError):
    """An argument of a call is invalid.

    Attributes:
        argument: The argument's name.
        got: Its value, if that is a number or text; other values as short text.
        expected: The values that it may have, as text.
    """

    def __init__(
        self, message: str = "", *, argument: str | None = None, got: object = None, expected: str | None = None
    ) -> None:
        super().__init__(message)
        self.argument, self.expected = argument, expected
        self.got = got if got is None or isinstance(got, (str, int, float)) else reprlib.repr(got)


class NoAttributeError(InputError, AttributeError):
    """A pipeline has no attribute of this name.

    Attributes:
        name: The name; `argument` is the same.
    """

    def __init__(self, message: str = "", *, name: str | None = None) -> None:
        super().__init__(message, argument=name)
        if name is not None:  # AttributeError's own is None
            self.name = name


class SourceError(CalotypeError):
    """A model or file cannot be read.

    Attributes:
        path: The file or folder, or the name of a model on the hub.
        field: The field of a config, of a plan's manifest or of a header that is invalid, as a path with dots.
    """

    def __init__(self, message: str = "", *, path: str | Path | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.path, self.field = None if path is None else Path(path), field


class BackendError(CalotypeError):
    """A backend cannot run on this machine.

    Attributes:
        backend: The backend's name, for example "onnxruntime".
        component: The network's name, for example "unet".
    """

    def __init__(self, message: str = "", *, backend: str | None = None, component: str | None = None) -> None:
        super().__init__(message)
        self.backend, self.component = backend, component


class DeviceFullError(BackendError):
    """The memory of a GPU is too small. It is freed again, so that a smaller request works afterwards.

    Attributes:
        hint: What to try, as text.
        free_bytes: The memory of the GPU that was free for this process.
    """

    def __init__(
        self,
        message: str = "",
        *,
        backend: str | None = None,
        component: str | None = None,
        hint: str | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(message, backend=backend, component=component)
        self.hint, self.free_bytes = hint, free_bytes


class SamplerError(CalotypeError, ValueError):
    """A scheduler is unknown, or does not support the requested schedule.

    Attributes:
        scheduler: The scheduler's name.
        steps: The number of steps.
    """

    def __init__(self, message: str = "", *, scheduler: str | None = None, steps: int | None = None) -> None:
        super().__init__(message)
        self.scheduler, self.steps = scheduler, steps


class BuildError(CalotypeError):
    """A plan cannot be built.

    Attributes:
        backend: The backend of the plan.
        component: The network's name.
        hint: An option of the build that would work, as text.
    """

    def __init__(
        self, message: str = "", *, backend: str | None = None, component: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.backend, self.component, self.hint = backend, component, hint


class CheckError(CalotypeError):
    """An artifact does not match the reference.

    Attributes:
        backend: The backend that ran the artifact.
        component: The network's name.
        relative_error: The largest error of an output, relative to the largest number of the reference.
        limit: The largest error that is allowed.
    """

    def __init__(
        self,
        message: str = "",
        *,
        backend: str | None = None,
        component: str | None = None,
        relative_error: float | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__(message)
        self.backend, self.component, self.relative_error, self.limit = backend, component, relative_error, limit


class NotFiniteError(CalotypeError):
    """A network returned numbers that are not finite: its weights are damaged, or its precision is too low.

    Attributes:
        backend: The backend that ran the network.
        component: The network's name, for example "vae_decoder".
        precision: The precision of its artifact, for example "fp16".
        step: The step at which it happened, counted from 1.
    """

    def __init__(
        self,
        message: str = "",
        *,
        backend: str | None = None,
        component: str | None = None,
        precision: str | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.backend, self.component, self.precision, self.step = backend, component, precision, step


class Cancelled(CalotypeError):
    """The generation was cancelled between two steps. The pipeline can generate again.

    Attributes:
        step: The number of steps that were finished.
        total: The number of steps of the generation.
    """

    def __init__(self, message: str = "", *, step: int | None = None, total: int | None = None) -> None:
        super().__init__(message)
        self.step, self.total = step, total


class DeadlineError(Cancelled):
    """The generation did not end within its time."""


class QueueFullError(CalotypeError):
    """A server has no room for another job.

    Attributes:
        waiting: The number of jobs that wait.
        limit: The largest number.
        retry_after_s: Seconds after which there may be room.
    """

    def __init__(
        self,
        message: str = "",
        *,
        waiting: int | None = None,
        limit: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s
