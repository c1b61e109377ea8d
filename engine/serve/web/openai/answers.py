"""The answers of OpenAI's image API: one JSON object, or a stream of events."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ....report.result import Result
from ...job import Job
from ..service import Service
from ..service.errors import error_body
from ..service.events import EventStream, event
from ..service.images import encoded_image
from .calls import ImageCall

_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "total_tokens": 0,
}


async def answer(service: Service, http: Request, call: ImageCall) -> Response:
    """Run a call and return its answer. The job ends if the client closes the connection."""
    if call.stream:
        job = await service.submit(http, call.job)
        return EventStream(_events(service, http, call, job), service.settings.stream_idle_s, job.cancel)
    job = await service.run(http, call.job)
    result = job.result(0)
    data: list[dict[str, Any]] = [{"seed": seed} for seed in result.seeds]
    if call.response_format != "url":
        for entry, text in zip(data, await _encoded(call, result), strict=True):
            entry |= {"b64_json": text}
    if call.response_format != "b64_json":
        base = service.base_url(http)
        for entry, kept in zip(data, await service.kept(job, call.output_format, call.quality), strict=True):
            entry |= {"url": f"{base}/files/{kept['name']}"}
    return JSONResponse({"created": int(time.time()), "data": data, "usage": _USAGE, **_format(call, result.images[0])})


async def _events(service: Service, http: Request, call: ImageCall, job: Job) -> AsyncIterator[bytes]:
    sent, step = 0, 0
    async for status in job.updates():
        if status.preview and status.preview_step > step and not status.is_final and sent < call.partial_images:
            step, image = status.preview_step, status.preview[0]
            data = await to_thread.run_sync(_base64, call, image)
            yield _event(call, image, "partial_image", {"b64_json": data, "partial_image_index": sent})
            sent += 1
    if status.error is not None:
        yield event(error_body(http, status.error), "error")
        return
    result = job.result(0)
    for image, seed, data in zip(result.images, result.seeds, await _encoded(call, result), strict=True):
        yield _event(call, image, "completed", {"b64_json": data, "usage": _USAGE, "seed": seed})


def _event(call: ImageCall, image: Image.Image, kind: str, data: dict[str, Any]) -> bytes:
    name = f"{call.task}.{kind}"
    return event({"type": name, "created_at": int(time.time()), **_format(call, image), **data}, name)


def _format(call: ImageCall, image: Image.Image) -> dict[str, Any]:
    size = f"{image.width}x{image.height}"
    return {"background": "opaque", "output_format": call.output_format, "quality": "auto", "size": size}


async def _encoded(call: ImageCall, result: Result) -> list[str]:
    return await to_thread.run_sync(lambda: [_base64(call, image) for image in result.images])


def _base64(call: ImageCall, image: Image.Image) -> str:
    return base64.b64encode(encoded_image(image, call.output_format, call.quality)).decode()
