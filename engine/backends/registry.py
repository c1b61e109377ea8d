"""The list of backends: which can run here, and in which order they are tried.

`backend="auto"` tries the backends in the order of `AUTO` and reports why it skipped one. A backend that the caller
names either works or raises an error. Only this module knows the list. The module of a backend is imported when its
record is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BackendError
from ..system.nvidia import has_gpu
from .base import Backend

_MODULES = {
    "onnxruntime": "onnxruntime.cpu",
    "openvino": "openvino.runner",
    "tensorrt": "tensorrt.runner",
    "tensorrt-rtx": "tensorrt.rtx",
    "cuda": "torch.cuda",
    "onnxruntime-cuda": "onnxruntime.cuda",
    "eager": "torch.eager",
    "fake": "fake",
}
NAMES = tuple(_MODULES)
# Without the fake backend: it generates no real images, so a caller has to name it.
AUTO = ("openvino", "onnxruntime", "eager")
COMPILED = ("tensorrt", "tensorrt-rtx")  # these take minutes to build: auto opens existing ones and builds none
ON_GPU = (*COMPILED, "cuda", "onnxruntime-cuda")
AUTO_ON_GPU = ("tensorrt", "cuda", "onnxruntime-cuda")  # auto tries these first if there is an NVIDIA GPU


@dataclass(frozen=True, kw_only=True)
class BackendSelection:
    """The backends to try, in order.

    Attributes:
        names: those that can run here.
        skipped: those that cannot, with the reason.
        requested: all that were requested, in order. Reports give no reason for those after the one that opened.
        explicit: the caller named them; False for "auto".
    """

    names: tuple[str, ...]
    skipped: Mapping[str, str]
    requested: tuple[str, ...]
    explicit: bool

    @property
    def forms(self) -> frozenset[str]:
        """The artifact form that the first choice needs. No other form is built, as that takes minutes."""
        forms = [form_of(name) for name in self.names]
        return frozenset([form for form in forms if self.explicit or form not in COMPILED][:1])


def backend_of(name: str) -> Backend:
    """Return a backend's record."""
    record: Backend = importlib.import_module(f"calotype.backends.{_MODULES[name]}").BACKEND
    return record


def form_of(name: str) -> str:
    """Return the form of artifact that the backend opens."""
    return backend_of(name).form


def unavailable(name: str) -> str | None:
    """Return why the backend cannot run on this machine and the command that fixes it, or None if it can."""
    return backend_of(name).unavailable()


def unsupported(name: str, precision: str) -> str | None:
    """Return why this machine cannot compute in the precision with an available backend, or None if it can."""
    return backend_of(name).unsupported(precision)


def choose(
    request: str | Sequence[str], *, first: str | None = None, refused: Mapping[str, str] | None = None
) -> BackendSelection:
    """Select the backends to try. Without an NVIDIA GPU, "auto" tries no backend that needs one.

    Args:
        request: "auto", a name, or a list of names in order of preference.
        first: the backend that auto tries first: the one that a plan was built for.
        refused: backends that must not run, with the reason.

    Raises:
        BackendError: a name is unknown, or none of the backends can run.
    """
    listed = (*(AUTO_ON_GPU if has_gpu() else ()), *AUTO)
    auto = tuple(dict.fromkeys([first, *listed] if first in NAMES else listed))
    requested = auto if request == "auto" else (request,) if isinstance(request, str) else tuple(request)
    for name in requested:
        if name == "auto":
            message = '"auto" cannot be combined with backend names. Pass "auto", or a list of names.'
            raise BackendError(message, backend=name)
        if name not in NAMES:
            raise BackendError(f"unknown backend {name!r}: expected one of auto, {', '.join(NAMES)}.", backend=name)
    reasons = {name: (refused or {}).get(name) or unavailable(name) for name in requested}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(skipped) == len(reasons):
        message = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        message = f"no backend can run here. {message}" if message else "the list of backends is empty."
        raise BackendError(message, backend=requested[0] if len(requested) == 1 else None)
    names = tuple(name for name in reasons if name not in skipped)
    return BackendSelection(names=names, skipped=skipped, requested=requested, explicit=request != "auto")
