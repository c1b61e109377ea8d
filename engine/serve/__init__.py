"""The server: an engine loop that many requests share, and the web service in front of it.

`Engine` takes jobs and runs them on loaded models. It knows nothing of HTTP. `calotype.serve.web` is the service. A
name is imported at its first use, because the command line imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import ModelCatalog
    from .engine import Engine
    from .job import Job, JobRequest, JobStatus, State
    from .settings import EngineSettings

__all__ = ["Engine", "EngineSettings", "Job", "JobRequest", "JobStatus", "ModelCatalog", "State"]

_MODULES = {
    "Engine": "engine",
    "EngineSettings": "settings",
    "Job": "job",
    "JobRequest": "job",
    "JobStatus": "job",
    "ModelCatalog": "catalog",
    "State": "job",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'calotype.serve' has no attribute {name!r}")
    return getattr(importlib.import_module(f"calotype.serve.{_MODULES[name]}"), name)
