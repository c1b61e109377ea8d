"""Ways to execute a network: a backend opens an artifact, a runner runs it over named arrays."""

from .component import LoadedComponent, open_component
from .registry import COMPILED, NAMES, ON_GPU, BackendSelection, choose, form_of, unavailable

__all__ = [
    "COMPILED",
    "NAMES",
    "ON_GPU",
    "BackendSelection",
    "LoadedComponent",
    "choose",
    "form_of",
    "open_component",
    "unavailable",
]
