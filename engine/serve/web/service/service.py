"""`Service`: what the routes of every API use to take jobs, watch them, and keep their images."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from anyio import to_thread
from PIL import Image
from starlette.requests import Request

from ....errors import CalotypeError, InputError, QueueFullError
from ...interface import JobRunner
from ...job import Job, JobRequest, JobStatus
from ...service_settings import ServiceSettings
from . import arguments, images
from .errors import ClientGone, HTTPError, describe_error
from .events import is_gone
from .files import KeptFiles
from .keys import Key, Keys, Rate
from .limits import check_limits
from .logs import log
from .metrics import Metrics
from .traces import Traces

T = TypeVar("T")
_KNOWN_IDS = 20_000  # ids of jobs that ended, whose results are gone
_ID_BYTES = 18


class Service:
    """A web service around an engine. Its methods run in the event loop, and its slow work in threads."""

    def __init__(self, engine: JobRunner, settings: ServiceSettings | None = None) -> None:
        """Read the key file, and open the folder of kept images.

        Args:
            engine: What runs the jobs.
            settings: Limits and rights.
        """
        self.engine, self.settings = engine, settings or ServiceSettings()
        self.keys = Keys.read(self.settings.key_file)
        self.files = KeptFiles(self.settings)
        self.metrics = Metrics(engine)
        engine.observe(self.metrics)
        self.ready = False  # set after the warm-up
        self.failed: CalotypeError | None = None  # why a model of the warm-up cannot be opened
        self.cancel_on_disconnect: WeakSet[Job] = WeakSet()  # jobs that end with the stream of their events
        self.traces = Traces.to(self.settings.traces_endpoint)
        self._start = secrets.token_hex(4)  # the ids of this server's jobs begin with it
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._rates: dict[str, Rate] = {}
        self._active: Counter[str] = Counter()  # jobs that wait or run, by owner
        self._kept: WeakKeyDictionary[Job, asyncio.Task[list[dict[str, Any]]]] = WeakKeyDictionary()
        self._previews: WeakKeyDictionary[Job, tuple[int, str]] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def owner_of(self, http: Request) -> str:
        """Return whose request it is: the name of an API key, or the client's address."""
        owner: str = http.state.owner
        return owner

    async def json_body(self, http: Request) -> dict[str, Any]:
        """Return the JSON object in a request's body; an empty one for no body.

        Raises:
            HTTPError: The content type is not application/json, or the body is not a JSON object.
        """
        data = await http.body()
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if data and kind != "application/json":
            message = f"the body is {kind or 'of no type'!r:.80}; expected Content-Type: application/json."
            raise HTTPError(message, status=415, code="content_type")
        try:
            body = (await to_thread.run_sync(json.loads, data)) if data else {}
        except (ValueError, RecursionError) as error:
            raise HTTPError(f"the body is not JSON: {error!s:.100}.", code="invalid_json") from None
        if not isinstance(body, dict):
            raise HTTPError(f"the body is {body!r:.80}; expected a JSON object.", code="invalid_json")
        return body

    def image_from_base64(self, text: Any, argument: str = "image") -> Image.Image:
        """Return an image from base64 or a data URL. Slow: call it in a thread. Raises `InputError`."""
        return images.image_from_base64(text, self.settings.max_upload_pixels, argument)

    def image_from_bytes(self, data: bytes, argument: str = "image") -> Image.Image:
        """Return an image from the bytes of a file. Slow: call it in a thread. Raises `InputError`."""
        return images.image_from_bytes(data, self.settings.max_upload_pixels, argument)

    def image_decoder(self) -> Callable[[Any, str], Image.Image]:
        """Return a function that decodes the images of one request, from base64. Slow: call it in a thread.

        It gets the value and the field's name, and raises `InputError`.
        """
        left = self.settings.max_upload_pixels

        def decode(value: Any, argument: str) -> Image.Image:
            nonlocal left  # a limit of all images together: each may be small as a file
            decoded = images.image_from_base64(value, left, argument)
            left -= decoded.width * decoded.height
            return decoded

        return decode

    async def job_from(self, body: Mapping[str, Any]) -> JobRequest:
        """Return the job that the body of a request describes. Raises `InputError`."""
        return await to_thread.run_sync(arguments.job_from, body, self.image_decoder())

    def model_of(self, model: Any) -> str:
        """Return the name of the model that a client names, which may have LoRAs after it. Raises `InputError`."""
        return self._named(model)[0]

    async def submit(self, http: Request, job: JobRequest, *, keep: bool = False) -> Job:
        """Give a job to the engine for the client of a request.

        Args:
            http: The request.
            job: The job. Its model may have LoRAs after its name: "demo+ink:0.8".
            keep: Write its images to files at its end, whoever reads them.

        Raises:
            QueueFullError: Too many jobs wait, or the client's key allows no more now.
            InputError: An argument is invalid, or above a limit of the service.
            SamplerError: The scheduler is unknown, or cannot run with this number of steps.
        """
        check_limits(job, self.settings)
        owner, key = self.owner_of(http), http.state.key
        if key is not None:
            self._check_key(owner, key, job)
        timeout = min(job.timeout_s or math.inf, self.settings.max_job_s)
        job_id = self._start + secrets.token_urlsafe(_ID_BYTES)
        model, loras = self._named(job.model)
        loras = job.loras if loras is None else (*loras, *(job.loras or ()))
        ours = replace(job, owner=owner, id=job_id, timeout_s=timeout, model=model, loras=loras)
        self._active[owner] += 1
        try:
            submitted = await to_thread.run_sync(self.engine.submit, ours)
        except BaseException:
            self._active[owner] -= 1
            raise
        self._owners[job_id] = owner
        while len(self._owners) > _KNOWN_IDS:
            self._owners.popitem(last=False)
        task = asyncio.create_task(self._watch(submitted, http, keep))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return submitted

    def job(self, http: Request, job_id: str) -> Job:
        """Return a job of the client.

        Raises:
            HTTPError: 404, there is no such job; 410, it ended long ago, or before the server started again.
        """
        owner, job = self.owner_of(http), self.engine.job(job_id)
        if job is not None and job.request.owner == owner:
            return job
        form = len(job_id) == len(self._start) + len(secrets.token_urlsafe(_ID_BYTES))
        if job is None and (self._owners.get(job_id) == owner or (form and not job_id.startswith(self._start))):
            raise HTTPError("the job ended, and its result is no longer kept.", status=410, code="job_gone")
        raise HTTPError("there is no job of this id.", status=404, code="unknown_job")

    def jobs(self, http: Request) -> list[Job]:
        """Return the jobs of the client, the newest first."""
        owner = self.owner_of(http)
        return [job for job in reversed(self.engine.jobs()) if job.request.owner == owner]

    async def run(self, http: Request, job: JobRequest) -> Job:
        """Run a job while its client waits, and return it done. A client that closes the connection ends it.

        Raises:
            ClientGone: The client has closed the connection.
            CalotypeError: Why the job was refused, or failed.
        """
        submitted = await self.submit(http, job)
        try:
            await self.while_connected(http, _end_of(submitted))
            submitted.result(0)
            return submitted
        finally:
            submitted.cancel()  # does nothing once it has ended

    async def while_connected(self, http: Request, work: Awaitable[T]) -> T:
        """Return the result of `work`, which is cancelled if the client closes the connection (`ClientGone`)."""
        gone, working = is_gone(http), asyncio.ensure_future(work)
        try:
            await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientGone("the client closed the connection.")
        finally:
            for task in (gone, working):
                task.cancel()
            await asyncio.gather(gone, working, return_exceptions=True)

    async def describe(self, http: Request, job: Job, status: JobStatus | None = None) -> dict[str, Any]:
        """Return a job as JSON data, with the addresses of its images once it is done."""
        status = status or job.status
        described = {
            "id": job.id,
            "state": status.state,
            "place": status.place,
            "step": status.step,
            "total": status.total,
            "eta_s": status.eta_s,
            "preview_step": status.preview_step,
            "preview": await self.preview(job, status),
            "error": None if status.error is None else describe_error(status.error),
            "model": job.request.model,
            "submitted_at": job.submitted_at,
            "images": [],
            "seeds": [],
            "report": None,
        }
        if status.result is not None:
            base, kept = self.base_url(http), await self.kept(job)
            described["images"] = [{**each, "url": f"{base}/files/{each['name']}"} for each in kept]
            described |= {"seeds": list(status.result.seeds), "report": str(images.public_report(status.result.report))}
        return described

    async def preview(self, job: Job, status: JobStatus) -> str | None:
        """Return the first image of a job's preview as a data URL."""
        if not status.preview or status.is_final:
            return None
        known = self._previews.get(job)
        if known is None or known[0] < status.preview_step:
            url = await to_thread.run_sync(images.preview_url, status.preview[0])
            known = self._previews[job] = (status.preview_step, url)
        return known[1]

    async def kept(self, job: Job, kind: images.Format = "png", quality: int | None = None) -> list[dict[str, Any]]:
        """Keep the images of a job that is done, once; return their names, seeds and sizes."""
        if job not in self._kept:
            write = partial(self._keep, job, kind, quality)
            self._kept[job] = asyncio.create_task(to_thread.run_sync(write))
        return await asyncio.shield(self._kept[job])

    def base_url(self, http: Request) -> str:
        """Return the address under which the client reaches the service."""
        return (self.settings.public_url or str(http.base_url)).rstrip("/")

    def refused(self, error: CalotypeError) -> None:
        """Count a request that the service refused."""
        reason = error.code if isinstance(error, HTTPError) else type(error).__name__
        self.metrics.refused.labels(reason).inc()

    async def warm_up(self) -> None:
        """Open the models of `preload` and generate images with each. The service is ready after that."""
        begin = time.monotonic()
        try:
            for name in (self.settings.preload or self.engine.catalog.names[:1]) if self.engine.is_local else ():
                await self._warm_up(name)
        except CalotypeError as error:
            self.failed = error
            log("cannot warm up", {"type": type(error).__name__, "message": str(error)}, logging.ERROR)
        else:
            self.ready = True
            log("ready", {"seconds": round(time.monotonic() - begin, 3)})

    async def _warm_up(self, name: str) -> None:
        model = self.engine.catalog.check_name(name)
        await to_thread.run_sync(self.engine.catalog.open, model)
        request = JobRequest(prompt="warm-up", arguments={"steps": 2, "seed": 0}, model=model)
        try:
            for count in (1, 2):  # alone and together: a backend compiles for each
                jobs = [await to_thread.run_sync(self.engine.submit, request) for _ in range(count)]
                for job in jobs:
                    await _end_of(job)
                    job.result(0)
        except InputError as error:  # a model that takes no text, or needs an image
            log("not warmed up", {"model": name, "message": str(error)})

    async def close(self, drain_s: float = 0.0) -> None:
        """End the engine, after the jobs that it took or `drain_s` seconds, and write what is still to write."""
        await to_thread.run_sync(self.engine.close, drain_s)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.traces is not None:
            await to_thread.run_sync(self.traces.close)
        self.files.close()

    def _keep(self, job: Job, kind: images.Format, quality: int | None) -> list[dict[str, Any]]:
        result = job.result(0)
        names = [
            self.files.keep(images.encoded_image(image, kind, quality), kind, job.request.owner)
            for image in result.images
        ]
        return [
            {"name": name, "seed": seed, "width": image.width, "height": image.height}
            for name, seed, image in zip(names, result.seeds, result.images, strict=True)
        ]

    def _check_key(self, owner: str, key: Key, job: JobRequest) -> None:
        if job.priority > key.max_priority:
            expected = f"at most {key.max_priority}"
            message = f"priority is {job.priority}; this API key allows {expected}."
            raise InputError(message, argument="priority", got=job.priority, expected=expected)
        active = self._active[owner]
        if key.max_jobs is not None and active >= key.max_jobs:
            message = f"{active} jobs of this API key wait or run, which is its limit. Wait for one of them."
            raise QueueFullError(message, waiting=active, limit=key.max_jobs, retry_after_s=1.0)
        if key.jobs_per_minute is not None:
            wait = self._rates.setdefault(owner, Rate(key.jobs_per_minute)).take()
            if wait:
                message = f"this API key allows {key.jobs_per_minute:g} jobs in a minute. Try again later."
                raise QueueFullError(message, retry_after_s=wait)

    def _named(self, model: Any) -> tuple[str, tuple[tuple[str, float], ...] | None]:
        catalog = self.engine.catalog
        if not isinstance(model, str) or model in catalog.names:
            return catalog.check_name(model), None
        name, *texts = model.split("+")
        return catalog.check_name(name), arguments.loras_from_text(texts) or None

    async def _watch(self, job: Job, http: Request, keep: bool) -> None:
        """Count, log and keep a job that ends, whoever reads it."""
        waited, model = 0.0, job.request.model or ""
        async for status in job.updates():
            if status.state != "waiting" and not waited:
                waited = time.monotonic() - job.arrival
        self._active -= Counter([job.request.owner])  # drops owners without jobs
        if keep and job.status.result is not None:
            await self.kept(job)
        seconds = time.monotonic() - job.arrival
        self.metrics.ended(job, model, waited, seconds)
        known = {"job": job.id, "request_id": http.state.request_id, "owner": job.request.owner, "model": model}
        times = {"seconds": round(seconds, 6), "waited_s": round(waited, 6)}
        error = job.status.error
        reason = {} if error is None else {"type": type(error).__name__, "message": str(error)}
        log("job", {**known, "state": job.status.state, **times, **reason})
        if self.traces is not None:
            steps = {"state": job.status.state, "steps": job.status.step}
            self.traces.ended(job, http.headers, waited, {**known, **steps})


async def _end_of(job: Job) -> None:
    status: AsyncIterator[JobStatus] = job.updates()
    async for _ in status:
        pass
