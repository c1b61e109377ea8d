"""Which backends there are, which of them can run here, and in which order they are tried.

The order of `AUTO` is the order in which `backend="auto"` tries; every name passed over is told with its reason. A
backend that was asked for by name works or raises. Only this module knows the list; each backend is a module of
its own, imported when it is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from ..errors import BackendError
from ..system.nvidia import has_gpu

# name -> module. Each module has FORM (the artifacts it opens), PRECISIONS (those it runs), `unavailable()` and
# `open_runner(component, artifact)`.
_MODULES = {
    "onnxruntime": "calotype.backends.onnxruntime.cpu",
    "openvino": "calotype.backends.openvino.runner",
    "tensorrt": "calotype.backends.tensorrt.runner",
    "tensorrt-rtx": "calotype.backends.tensorrt.rtx",
    "cuda": "calotype.backends.torch.cuda",
    "onnxruntime-cuda": "calotype.backends.onnxruntime.cuda",
    "eager": "calotype.backends.torch.eager",
    "fake": "calotype.backends.fake",
}
NAMES = tuple(_MODULES)
# The fake backend makes no pictures: by name alone.
AUTO = ("openvino", "onnxruntime", "eager")
COMPILED = ("tensorrt", "tensorrt-rtx")  # forms that take minutes to make: auto opens them, and does not make them
ON_GPU = (*COMPILED, "cuda", "onnxruntime-cuda")
AUTO_ON_GPU = ("tensorrt", "cuda", "onnxruntime-cuda")  # before the others, where there is an NVIDIA GPU


@dataclass(frozen=True, kw_only=True)
class BackendSelection:
    """The backends to try, in order, and what was passed over already: name -> reason.

    `wanted` is the whole list that was asked for: who stands behind the one that was taken needs no excuse.
    """

    names: tuple[str, ...]
    skipped: Mapping[str, str]
    requested: tuple[str, ...]
    explicit: bool

    @property
    def forms(self) -> frozenset[str]:
        """The artifacts that the first choice needs, and no others: making them costs minutes."""
        forms = [form_of(name) for name in self.names]
        return frozenset([form for form in forms if self.explicit or form not in COMPILED][:1])


def backend_module(name: str) -> ModuleType:
    """The module of a backend, imported now."""
    return importlib.import_module(_MODULES[name])


def form_of(name: str) -> str:
    """The form of artifact that the backend opens."""
    return str(backend_module(name).FORM)


def unavailable(name: str) -> str | None:
    """Why the backend cannot run on this machine (with the command that mends it), or None where it can."""
    reason: str | None = backend_module(name).unavailable()
    return reason


def choose(
    request: str | Sequence[str], *, first: str | None = None, refused: Mapping[str, str] | None = None
) -> BackendSelection:
    """ "auto", a name, or a list of names in order of preference. Raises `BackendError` where none can run.

    `first` is what auto tries before all others: the backend that a plan was built for. `refused` are backends that may
    not run, with the reason. Where there is no NVIDIA GPU, auto asks for none.
    """
    listed = (*(AUTO_ON_GPU if has_gpu() else ()), *AUTO)
    auto = tuple(dict.fromkeys([first, *listed] if first in NAMES else listed))
    requested = auto if request == "auto" else (request,) if isinstance(request, str) else tuple(request)
    for name in requested:
        if name == "auto":
            raise BackendError("auto is an order of its own; give it alone, or a list of names without it.")
        if name not in _MODULES:
            raise BackendError(f"unknown backend {name!r}; known are auto, {', '.join(NAMES)}.")
    reasons = {name: (refused or {}).get(name) or unavailable(name) for name in requested}
    names = tuple(n for n, why_not in reasons.items() if why_not is None)
    skipped = {n: why_not for n, why_not in reasons.items() if why_not is not None}
    if not names:
        told = "; ".join(f"{n}: {why_not}" for n, why_not in skipped.items())
        raise BackendError(f"no backend can run here. {told}" if told else "the list of backends is empty.")
    return BackendSelection(names=names, skipped=skipped, requested=tuple(requested), explicit=request != "auto")
