"""Calotype: a compiled inference engine for Stable Diffusion.

    import calotype
    pipe = calotype.load("demo")
    pipe("a small red ring on a white background", seed=7).images[0].save("ring.png")

Importing this package imports neither torch nor diffusers nor numpy: a name is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from .errors import (
    BackendError,
    BuildError,
    CalotypeError,
    Cancelled,
    CheckError,
    DeadlineError,
    DeviceFullError,
    InputError,
    NoAttributeError,
    NotFiniteError,
    QueueFullError,
    SamplerError,
    SourceError,
)
from .system.version import __version__

if TYPE_CHECKING:
    from .drop_in.accelerate import accelerate, accelerate_report, accelerated, restore
    from .drop_in.report import AccelerateReport, ModuleReport
    from .images import preprocess
    from .images.clip import Clip, clip_score
    from .images.video import Video
    from .loading import load
    from .pipeline import Pipeline
    from .report.report import Report
    from .report.result import Event, Result
    from .sampling.schedulers import scheduler_names
    from .upscaling.load import load_upscaler
    from .upscaling.upscaler import Upscaler

__all__ = [
    "AccelerateReport",
    "BackendError",
    "BuildError",
    "CalotypeError",
    "Cancelled",
    "CheckError",
    "Clip",
    "DeadlineError",
    "DeviceFullError",
    "Event",
    "InputError",
    "ModuleReport",
    "NoAttributeError",
    "NotFiniteError",
    "Pipeline",
    "QueueFullError",
    "Report",
    "Result",
    "SamplerError",
    "SourceError",
    "Upscaler",
    "Video",
    "__version__",
    "accelerate",
    "accelerate_report",
    "accelerated",
    "clip_score",
    "errors",
    "load",
    "load_upscaler",
    "preprocess",
    "restore",
    "scheduler_names",
]

_MODULES = {
    "AccelerateReport": "calotype.drop_in.report",
    "Clip": "calotype.images.clip",
    "Event": "calotype.report.result",
    "ModuleReport": "calotype.drop_in.report",
    "Pipeline": "calotype.pipeline",
    "Report": "calotype.report.report",
    "Result": "calotype.report.result",
    "Upscaler": "calotype.upscaling.upscaler",
    "Video": "calotype.images.video",
    "accelerate": "calotype.drop_in.accelerate",
    "accelerate_report": "calotype.drop_in.accelerate",
    "accelerated": "calotype.drop_in.accelerate",
    "clip_score": "calotype.images.clip",
    "load": "calotype.loading",
    "load_upscaler": "calotype.upscaling.load",
    "restore": "calotype.drop_in.accelerate",
    "scheduler_names": "calotype.sampling.schedulers",
}


def __getattr__(name: str) -> Any:
    if name == "preprocess":
        return importlib.import_module("calotype.images.preprocess")
    if name not in _MODULES:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
