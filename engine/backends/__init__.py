"""Ways to execute a network: a backend opens an artefact, a runner runs it over named arrays.

The order of `AUTO` is the order in which `backend="auto"` tries; every name passed over is told with its reason. A
backend that was asked for by name works or raises. Only this module knows the list; each backend is a module of
its own, imported when it is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray

from calotype.bindings import check_arrays
from calotype.errors import BackendError, first_line
from calotype.plan import Artefact, PlannedComponent

Arrays = Mapping[str, NDArray[Any]]

# name -> module. Each module has FORM (the artefacts it opens), `unavailable()` and `open_runner(component, artefact)`.
_MODULES = {
    "onnxruntime": "calotype.backends.ort",
    "eager": "calotype.backends.eager",
    "fake": "calotype.backends.fake",
}
NAMES = tuple(_MODULES)
AUTO = ("onnxruntime", "eager")  # the fake backend makes no pictures: only by name


class Runner(Protocol):
    """A loaded component. Threads may share it."""

    backend: str
    precision: str

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. The caller has checked the inputs against the bindings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A component with the runner that was chosen for it, and why."""

    component: PlannedComponent
    runner: Runner
    why: str

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Check the inputs against the bindings, then run."""
        check_arrays(self.component.name, self.component.inputs, inputs)
        try:
            outputs = self.runner(inputs)
        except Exception as failed:  # out of memory, an id beyond the vocabulary: each library has kinds of its own
            raise BackendError(
                f"{self.runner.backend} failed on the {self.component.name}: {first_line(failed)}"
            ) from failed
        return outputs


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backends to try, in order, and what was passed over already: name -> reason."""

    names: tuple[str, ...]
    passed_over: Mapping[str, str]
    by_name: bool

    @property
    def forms(self) -> frozenset[str]:
        """The artefacts that the first choice needs, and no others: making them costs minutes."""
        return frozenset({form_of(self.names[0])})


def _module(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])


def form_of(name: str) -> str:
    """The form of artefact that the backend opens."""
    return str(_module(name).FORM)


def unavailable(name: str) -> str | None:
    """Why the backend cannot run on this machine (with the command that mends it), or None where it can."""
    reason: str | None = _module(name).unavailable()
    return reason


def choose(request: str | Sequence[str]) -> Choice:
    """ "auto", a name, or a list of names in order of preference. Raises `BackendError` where none can run."""
    wanted = AUTO if request == "auto" else (request,) if isinstance(request, str) else tuple(request)
    for name in wanted:
        if name not in _MODULES:
            raise BackendError(f"unknown backend {name!r}; known are auto, {', '.join(NAMES)}.")
    reasons = {name: unavailable(name) for name in wanted}
    names = tuple(n for n, why_not in reasons.items() if why_not is None)
    passed_over = {n: why_not for n, why_not in reasons.items() if why_not is not None}
    if not names:
        told = "; ".join(f"{n}: {why_not}" for n, why_not in passed_over.items())
        raise BackendError(f"no backend can run here. {told}" if told else "the list of backends is empty.")
    return Choice(names=names, passed_over=passed_over, by_name=request != "auto")


def open_component(component: PlannedComponent, choice: Choice) -> Opened:
    """Open with the first backend of the choice that can; the reasons of the others are in `why`."""
    passed_over = dict(choice.passed_over)
    for name in choice.names:
        try:
            artefact = _artefact_for(component, form_of(name))
            runner: Runner = _module(name).open_runner(component, artefact)
        except BackendError as failed:
            passed_over[name] = str(failed)
            continue
        return Opened(component=component, runner=runner, why=_why(name, choice, passed_over))
    told = "; ".join(f"{n}: {why_not}" for n, why_not in passed_over.items())
    raise BackendError(f"no backend could open the {component.name}. {told}")


def _artefact_for(component: PlannedComponent, form: str) -> Artefact:
    artefact = component.artefact(form)
    if artefact is None:
        raise BackendError(component.refused.get(form, f"the plan holds no {form} artefact of the {component.name}"))
    return artefact


def _why(name: str, choice: Choice, passed_over: Mapping[str, str]) -> str:
    asked = "asked for" if choice.by_name else "first of auto's list that runs"
    return "; ".join([asked, *(f"not {n}: {reason}" for n, reason in passed_over.items())])
