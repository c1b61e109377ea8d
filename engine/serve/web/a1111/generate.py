"""`/sdapi/v1/txt2img` and `img2img`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from anyio import to_thread
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....errors import Cancelled
from ....images.png import PARAMETERS, GeneratedImage
from ...job import Job
from ..service import Service
from ..service.images import as_base64
from .call import Call, call_from
from .clients import Clients
from .images import keep_unmasked

_NOT_ECHOED = ("init_images", "mask")


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes that generate images."""

    async def txt2img(http: Request) -> Response:
        return await _answer(service, clients, http, from_image=False)

    async def img2img(http: Request) -> Response:
        return await _answer(service, clients, http, from_image=True)

    return [
        Route("/sdapi/v1/txt2img", txt2img, methods=["POST"]),
        Route("/sdapi/v1/img2img", img2img, methods=["POST"]),
    ]


async def _answer(service: Service, clients: Clients, http: Request, *, from_image: bool) -> Response:
    body = await service.json_body(http)
    read = partial(call_from, service, body, clients.options(http), from_image=from_image)
    call = await to_thread.run_sync(read)
    job = await service.submit(http, call.job)
    if call.task:
        clients.name_job(http, call.task, job)
    try:
        await service.while_connected(http, _end_of(job))
    finally:
        job.cancel()  # does nothing once it has ended
    return JSONResponse(await to_thread.run_sync(_answer_of, job, call, body))


async def _end_of(job: Job) -> None:
    async for _ in job.updates():
        pass


def _answer_of(job: Job, call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer. As in the web UI, an interrupted job answers with its last preview."""
    status = job.status
    if isinstance(status.error, Cancelled):
        images, seeds = _laid_over(status.preview, call), list[int]()
    else:
        result = job.result(0)
        images, seeds = _laid_over(result.images, call), list(result.seeds)
    shown = [*images, *(control.image for control in call.controls if control.is_returned)]
    echoed = {name: None if name in _NOT_ECHOED else value for name, value in body.items()}
    return {
        "images": [as_base64(image) for image in shown] if call.sends_images else [],
        "parameters": echoed,
        "info": json.dumps(_info(call, images, seeds)),
    }


def _laid_over(images: Sequence[GeneratedImage], call: Call) -> list[GeneratedImage]:
    """Return the images with the pixels of the input image outside of the mask."""
    if call.unmasked is None:
        return list(images)
    image, mask = call.unmasked
    # A preview of the area around a mask has the size of that area.
    return [keep_unmasked(each, image, mask) if each.size == image.size else each for each in images]


def _info(call: Call, images: Sequence[Image.Image], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the settings by the names of the web UI's `Processed`."""
    arguments = call.job.arguments
    prompt, negative, count = call.job.prompt, arguments.get("negative_prompt", ""), len(images)
    width, height = images[0].size if images else (arguments.get("width", 0), arguments.get("height", 0))
    texts = [str(image.info.get(PARAMETERS, "")) for image in images]
    return {
        **{"prompt": prompt, "all_prompts": [prompt] * count},
        **{"negative_prompt": negative, "all_negative_prompts": [negative] * count},
        **{"seed": seeds[0] if seeds else -1, "all_seeds": list(seeds)},
        **{"subseed": -1, "all_subseeds": [-1] * count, "subseed_strength": 0},
        **{"width": width, "height": height, "sampler_name": call.sampler, "cfg_scale": arguments["guidance_scale"]},
        **{"steps": arguments["steps"], "batch_size": count, "restore_faces": False, "face_restoration_model": None},
        **{"sd_model_name": call.job.model, "sd_model_hash": "", "sd_vae_name": None, "sd_vae_hash": None},
        **{"seed_resize_from_w": -1, "seed_resize_from_h": -1},
        "denoising_strength": arguments.get("strength", arguments.get("hires_strength")),
        **{"extra_generation_params": {}, "index_of_first_image": 0, "infotexts": texts, "styles": []},
        **{"job_timestamp": time.strftime("%Y%m%d%H%M%S"), "clip_skip": arguments.get("clip_skip", 0) + 1},
        **{"is_using_inpainting_conditioning": False, "version": "Calotype"},
        "comments": [f"not taken: {comment}" for comment in call.comments],
    }
