"""The ControlNet extension: its units in `alwayson_scripts`, and the routes by which plugins ask for its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....errors import InputError
from ....images.preprocess import canny
from ..service import Service
from ..service.images import as_base64
from .clients import Clients
from .fields import Fields
from .images import CROP, FILL, Size, resized

Decode = Callable[[Any, str], Image.Image]
MODULES = ("none", "canny", "invert")
_EXTENSION = "controlnet"
_API_VERSION = 3
_MODES = {"just resize": 0, "crop and resize": CROP, "resize and fill": FILL}
_LOW, _HIGH = 100.0, 200.0
_MOST_UNITS = 8


@dataclass(frozen=True, kw_only=True)
class Control:
    """One unit: the image that a ControlNet gets, its strength, and its part of the steps."""

    image: Image.Image
    weight: float
    start: float
    end: float
    is_returned: bool


def controls_from(
    fields: Fields, decode: Decode, names: tuple[str, ...], size: Size | None, source: Any
) -> list[Control]:
    """Return the enabled units of a request.

    Args:
        fields: The request: `alwayson_scripts`, or the older `controlnet_units`.
        decode: Decodes an image.
        names: The model's ControlNets.
        size: The size of the output, if the request names one.
        source: What a unit without an image uses: the input image, or None.

    Raises:
        InputError: A unit names another model or module than this server has, or lacks an image.
    """
    entries: list[Any] = []
    for name, script in fields.mapping("alwayson_scripts").items():
        if name.lower() == _EXTENSION and isinstance(script, dict):
            entries = Fields(script).items("args")
    units = [Fields(entry) for entry in (entries or fields.items("controlnet_units")) if isinstance(entry, dict)]
    enabled = [unit for unit in units if unit.flag("enabled", True)]
    if len(enabled) > _MOST_UNITS:
        message = f"{len(enabled)} ControlNet units are enabled; expected at most {_MOST_UNITS}."
        raise InputError(message, argument=_EXTENSION)
    return [_control(unit, decode, names, size, source) for unit in enabled]


def arguments_of(controls: list[Control]) -> dict[str, Any]:
    """Return the arguments of a call for the units."""
    if not controls:
        return {}
    images = [control.image for control in controls]
    return {
        "control_image": images[0] if len(images) == 1 else images,
        "controlnet_conditioning_scale": [control.weight for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }


def _control(
    unit: Fields, decode: Decode, names: tuple[str, ...], size: Size | None, source: Image.Image | None
) -> Control:
    model = unit.text("model", "None").partition(" [")[0]
    if model not in ("", "None", "none", *names):
        expected = ", ".join(names) or "none: this model has no ControlNet"
        message = f"there is no ControlNet {model!r:.80}; expected {expected}."
        raise InputError(message, argument=_EXTENSION, got=model, expected=expected)
    value = unit.values.get("image") or unit.values.get("input_image")
    value = value.get("image") if isinstance(value, dict) else value
    image = decode(value, "the image of a ControlNet unit") if value else source
    if image is None:
        raise InputError("a ControlNet unit has no image.", argument=_EXTENSION, expected="its field image")
    image = image.convert("RGB")
    mode = unit.values.get("resize_mode", CROP)
    mode = (
        _MODES.get(mode.lower().partition(" (")[0], CROP)
        if isinstance(mode, str)
        else unit.integer("resize_mode", CROP)
    )
    image = image if size is None else resized(image, size, mode)
    start, end = unit.number("guidance_start", 0.0), unit.number("guidance_end", unit.number("guidance", 1.0))
    return Control(
        image=preprocessed(image, unit.text("module", "none"), unit),
        weight=unit.number("weight", 1.0),
        start=start,
        end=end,
        is_returned=unit.flag("save_detected_map", True),
    )


def _resize_mode(unit: Fields) -> int:
    """Return the number of a mode, which the extension's versions write as a number or as "Crop and Resize"."""
    mode = unit.values.get("resize_mode")
    if isinstance(mode, str) and not mode.isdecimal():
        return _MODES.get(mode.lower().partition(" (")[0], CROP)
    return unit.integer("resize_mode", CROP)


def preprocessed(image: Image.Image, module: str, settings: Fields) -> Image.Image:
    """Return what a module of the extension makes of an image. Raises `InputError` for a module of another network."""
    name = (module or "none").lower().partition(" ")[0]
    if name not in MODULES:
        expected = ", ".join(MODULES)
        message = f"there is no module {module!r:.80}; expected one of {expected}. Pass the module's result with none."
        raise InputError(message, argument="module", got=module, expected=expected)
    if name == "invert":
        return ImageOps.invert(image)
    if name == "none":
        return image
    low, high = settings.number("threshold_a", _LOW), settings.number("threshold_b", _HIGH)
    return canny(image, low if low >= 0 else _LOW, high if high >= 0 else _HIGH)  # -1 is the extension's default


def names_of(service: Service, model: str) -> tuple[str, ...]:
    """Return the names of a model's ControlNets."""
    pipe = service.engine.catalog.open(model)
    return tuple(name for name in pipe.plan.components if name.startswith(_EXTENSION))


def routes(service: Service, clients: Clients) -> list[Route]:
    """Return the routes of the extension."""

    async def models(http: Request) -> Response:
        model = clients.options(http).model or service.model_of(None)
        return JSONResponse({"model_list": list(await to_thread.run_sync(names_of, service, model))})

    async def modules(http: Request) -> Response:
        details = {name: {"model_free": False, "sliders": []} for name in MODULES}
        return JSONResponse({"module_list": list(MODULES), "module_detail": details})

    async def version(http: Request) -> Response:
        return JSONResponse({"version": _API_VERSION})

    async def settings(http: Request) -> Response:
        model = clients.options(http).model or service.model_of(None)
        return JSONResponse({"control_net_unit_count": len(await to_thread.run_sync(names_of, service, model))})

    async def detect(http: Request) -> Response:
        body = await service.json_body(http)
        return JSONResponse(await to_thread.run_sync(_detected, service, body))

    return [
        Route("/controlnet/version", version),
        Route("/controlnet/settings", settings),
        Route("/controlnet/model_list", models),
        Route("/controlnet/module_list", modules),
        Route("/controlnet/detect", detect, methods=["POST"]),
    ]


def _detected(service: Service, body: Mapping[str, Any]) -> dict[str, Any]:
    fields = Fields(body)
    settings = Fields(
        {"threshold_a": body.get("controlnet_threshold_a"), "threshold_b": body.get("controlnet_threshold_b")}
    )
    decode = service.image_decoder()
    images = [decode(value, "controlnet_input_images") for value in fields.items("controlnet_input_images")]
    module = fields.text("controlnet_module", "none")
    results = [preprocessed(image.convert("RGB"), module, settings) for image in images]
    return {"images": [as_base64(image) for image in results], "info": "Success"}
