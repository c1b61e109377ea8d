"""`/openapi.json`: the description of the APIs, from the table of fields that the service takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....request.arguments.argument import table
from ....request.request import Request as Call
from ....system.version import __version__
from ..service import Service
from ..service.arguments import FIELDS, OTHER_NAMES

Schema = dict[str, Any]
_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_IMAGE = {"type": "string", "description": "Base64 or a data URL of a PNG, JPEG or WebP."}
_FILE = {"type": "string", "format": "binary"}


def _or_list(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "items": schema}]}


_KINDS: Mapping[str, Schema] = {
    "text": _TEXT,
    "texts": _or_list(_TEXT),
    "number": _NUMBER,
    "numbers": _or_list(_NUMBER),
    "flag": _FLAG,
    "images": _or_list(_IMAGE),
}
_LORA = {"type": "object", "properties": {"name": _TEXT, "weight": _NUMBER}, "required": ["name"]}
_OF_JOBS: Schema = {
    "model": _TEXT,
    "loras": {"type": "array", "items": {"anyOf": [_LORA, _TEXT]}},
    "priority": {"type": "integer"},
    "timeout_s": _NUMBER,
    "preview_every": {"type": "integer", "minimum": 0},
    "cancel_on_disconnect": _FLAG,
}
_OF_OPENAI: Schema = {
    "n": {"type": "integer", "minimum": 1},
    "size": {"type": "string", "description": "auto, or WIDTHxHEIGHT."},
    "response_format": {"enum": ["url", "b64_json"]},
    "output_format": {"enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
    "stream": _FLAG,
    "partial_images": {"type": "integer", "minimum": 0, "maximum": 3},
}
_ERRORS = {
    "400": "A field is invalid.",
    "401": "The API key is missing, unknown or expired.",
    "403": "The origin of the page is not allowed.",
    "404": "There is no such thing, or it is another client's.",
    "408": "The body did not arrive in time.",
    "410": "The job ended, and its result is no longer kept.",
    "413": "The body is too large.",
    "415": "The content type is wrong.",
    "421": "The server is not known by this host name.",
    "429": "Too many jobs wait. Retry-After has the seconds.",
    "499": "The job was cancelled.",
    "500": "The server failed.",
    "503": "The device is full, or the server is not ready.",
    "504": "The job did not end in time.",
}


def routes(service: Service) -> list[Route]:
    """Return the route of the description."""
    described = describe()

    async def description(http: Request) -> Response:
        return JSONResponse(described)

    return [Route("/openapi.json", description)]


def describe() -> Schema:
    """Return the OpenAPI description of jobs, files, options, health and OpenAI's API."""
    job, image = _body("application/json", {**_fields(), **_OF_JOBS}), _fields() | _OF_JOBS | _OF_OPENAI
    form = {"image": _FILE, "mask": _FILE, **{name: schema for name, schema in image.items() if name != "image"}}
    one = {"parameters": [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]}
    name = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}]}
    paths: Schema = {
        "/jobs": {"get": _call("List your jobs."), "post": _call("Submit a job.", job, status="202")},
        "/jobs/{id}": {"get": _call("Return a job.", one), "delete": _call("Cancel a job.", one)},
        "/jobs/{id}/events": {"get": _call("Stream the events of a job.", one, media="text/event-stream")},
        "/files/{name}": {"get": _call("Return an image.", name, media="image/*")},
        "/options": {"get": _call("Return models, LoRAs, schedulers and limits.")},
        "/health/live": {"get": _call("Return whether the server runs.")},
        "/health/ready": {"get": _call("Return whether the server is ready.")},
        "/metrics": {"get": _call("Return metrics for Prometheus.", media="text/plain")},
        "/v1/models": {"get": _call("List the models.")},
        "/v1/models/{name}": {"get": _call("Return a model.", name)},
        "/v1/images/generations": {"post": _call("Generate images.", _body("application/json", image))},
    }
    for task in ("edits", "variations"):
        body = _body("multipart/form-data", form, required=("image",))
        paths[f"/v1/images/{task}"] = {"post": _call(f"Generate {task} of an image.", body)}
    return {"openapi": "3.1.0", "info": {"title": "Calotype", "version": __version__}, "paths": paths}


def _fields() -> Schema:
    help_of = {name: about.help for name, _, about in table(Call)}
    schemas = {name: {**_KINDS[kind], "description": help_of[name]} for name, kind in FIELDS.items()}
    other = {name: schemas[alias.name] for name, alias in OTHER_NAMES.items() if name != "cross_attention_kwargs"}
    return {**schemas, **other, "cross_attention_kwargs": {"type": "object", "properties": {"scale": _NUMBER}}}


def _body(media: str, properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}


def _call(text: str, more: Schema | None = None, *, status: str = "200", media: str = "application/json") -> Schema:
    answers = {status: {"description": "The answer.", "content": {media: {}}}}
    return {"summary": text, "responses": answers | {s: {"description": d} for s, d in _ERRORS.items()}, **(more or {})}
