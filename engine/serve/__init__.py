"""The server: an engine loop that many requests share, and the web service in front of it.

`Engine` takes jobs and runs them on loaded models. It knows nothing of HTTP. `calotype.serve.web` is the service.
"""

from .catalog import ModelCatalog
from .engine import Engine
from .job import Job, JobRequest, JobStatus, State
from .settings import EngineSettings

__all__ = ["Engine", "EngineSettings", "Job", "JobRequest", "JobStatus", "ModelCatalog", "State"]
