"""`Worker`: an engine in a replica of Ray Serve. It runs a job, and yields its statuses until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ray import serve

from ...backends.openvino.shapes import keep_for_server
from ...errors import CalotypeError
from ..command.config import ServeConfig
from ..command.models import engine_of
from ..job import JobRequest, JobStatus


class Worker:
    """The owner of one device. It opens a model at its first job."""

    def __init__(self, config: ServeConfig) -> None:
        keep_for_server()
        self._engine = engine_of(config)

    @serve.multiplexed(max_num_models_per_replica=-1)  # the catalog has a limit of its own
    async def _open(self, model: str) -> str:
        """Open a model. Ray learns that this worker has it, and sends it the model's next jobs."""
        await asyncio.to_thread(self._engine.catalog.open, model)
        return model

    async def run(self, request: JobRequest) -> AsyncIterator[JobStatus]:
        """Yield the statuses of a job. A reader that leaves cancels the job."""
        try:
            await self._open(request.model)
            job = await asyncio.to_thread(self._engine.submit, request)
        except CalotypeError as failed:
            yield JobStatus(state="failed", error=failed)
            return
        try:
            async for status in job.updates():
                yield status
        finally:
            job.cancel()

    def __del__(self) -> None:
        """Ray calls this when it stops the replica, whose jobs have ended."""
        self._engine.close()
