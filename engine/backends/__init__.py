"""Backends: each opens an artifact and returns a runner, which runs the network over named arrays."""

from .component import LoadedComponent, open_component
from .registry import COMPILED, NAMES, ON_GPU, BackendSelection, choose, form_of, unavailable, unsupported

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
    "unsupported",
]
