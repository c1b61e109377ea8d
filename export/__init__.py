"""Turn a model's files into plans: read sources, trace to ONNX, lower the precision, check, and store.

`calotype.load` calls `prepare_lazily` for a model that is not a plan; `build` writes a plan folder. The names below are
imported at first use, so that the command line starts fast. Heavy libraries are imported when a build step needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder.build import build
    from .builder.module import ModuleSource, keep_weights, prepare_module
    from .builder.prepare import prepare, prepare_lazily
    from .builder.spec import BuildSpec
    from .builder.upscaler import prepare_upscaler
    from .fit.fit import fit_samplers
    from .fit.spec import FitSpec

__all__ = [
    "BuildSpec",
    "FitSpec",
    "ModuleSource",
    "build",
    "fit_samplers",
    "keep_weights",
    "prepare",
    "prepare_lazily",
    "prepare_module",
    "prepare_upscaler",
]

_MODULES = {
    "BuildSpec": "builder.spec",
    "FitSpec": "fit.spec",
    "ModuleSource": "builder.module",
    "build": "builder.build",
    "fit_samplers": "fit.fit",
    "keep_weights": "builder.module",
    "prepare": "builder.prepare",
    "prepare_lazily": "builder.prepare",
    "prepare_module": "builder.module",
    "prepare_upscaler": "builder.upscaler",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'calotype.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"calotype.export.{_MODULES[name]}"), name)
