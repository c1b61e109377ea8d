"""From a model's files to artifacts: sources, tracing to ONNX, precision, checking, the store, plans.

`prepare_lazily` is what `calotype.load` calls for a model that is no plan yet; `build` leaves a plan in a folder.
Names are looked up when they are used, so that the command line starts at once; heavy libraries are imported when
something has to be made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder.build import build
    from .builder.prepare import prepare, prepare_lazily
    from .builder.spec import BuildSpec

__all__ = ["BuildSpec", "build", "prepare", "prepare_lazily"]

_HOMES = {
    "BuildSpec": "builder.spec",
    "build": "builder.build",
    "prepare": "builder.prepare",
    "prepare_lazily": "builder.prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calotype.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"calotype.export.{_HOMES[name]}"), name)
