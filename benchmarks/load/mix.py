"""The traffic: calls of every API, with mixed sizes, steps, samplers, guidance and input images."""

from __future__ import annotations

import base64
import io
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

_SCHEDULERS = ("euler", "ddim", "dpm++2m-karras", "euler-a", "unipc")
_SUBJECTS = ("a red ring", "a small blue square", "a green star on a white background", "a yellow heart")
_SIDES, _STEPS = (64, 96, 128), (2, 4, 8, 20)
_KINDS = ("jobs", "jobs", "openai", "openai-stream", "image to image", "a1111")  # as often as they are listed


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request of a client.

    Attributes:
        kind: What the tables group by.
        path: Where its body is posted.
        body: JSON data.
        is_job: The answer names a job, whose events the client follows.
        streams: The answer is a stream of events.
    """

    kind: str
    path: str
    body: dict[str, Any]
    is_job: bool = False
    streams: bool = False


def draw(source: random.Random) -> Call:
    """Return a call at random."""
    scheduler, steps = source.choice(_SCHEDULERS), source.choice(_STEPS)
    return _call(source, source.choice(_KINDS), source.choice(_SIDES), scheduler, steps)


def every() -> Iterator[Call]:
    """Yield calls with every kind and side, and with every scheduler and number of steps."""
    source = random.Random(0)
    yield from (_call(source, kind, side, "euler", 4) for kind in dict.fromkeys(_KINDS) for side in _SIDES)
    for kind, scheduler, steps in itertools.product(("jobs", "image to image"), _SCHEDULERS, _STEPS):
        yield _call(source, kind, 64, scheduler, steps)


def _call(source: random.Random, kind: str, side: int, scheduler: str, steps: int) -> Call:
    prompt = source.choice(_SUBJECTS)
    common = {"prompt": prompt, "seed": source.randrange(1 << 32)}
    if kind == "a1111":
        sizes = {"width": side, "height": side, "cfg_scale": 5}
        return Call(kind=kind, path="/sdapi/v1/txt2img", body={**common, **sizes, "steps": steps})
    more: dict[str, Any] = {"scheduler": scheduler, "guidance_scale": source.choice((1.0, 5.0))}
    if kind.startswith("openai"):
        body = {**common, **more, "size": f"{side}x{side}", "num_inference_steps": steps, "response_format": "b64_json"}
        streams = kind == "openai-stream"
        body |= {"stream": True, "partial_images": 1} if streams else {}
        return Call(kind=kind, path="/v1/images/generations", body=body, streams=streams)
    body = {**common, **more, "steps": steps, "preview_every": source.choice((0, 4))}
    if kind == "image to image":
        body |= {"image": _image(source, side), "strength": source.choice((0.5, 0.8))}
    else:
        body |= {"width": side, "height": side}
    return Call(kind=kind, path="/jobs", body=body, is_job=True)


def _image(source: random.Random, side: int) -> str:
    png = io.BytesIO()
    Image.new("RGB", (side, side), (source.randrange(256), source.randrange(256), 128)).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()
