"""The guidance method of a request, with its settings."""

from __future__ import annotations

from typing import TypedDict, get_args

from ..errors import InputError
from ..errors.validation import check_float
from .arguments.sampling import GuidanceMethod
from .request import Request

_MAX_NORM = 10_000
_SETTINGS = ("apg_eta", "apg_momentum", "apg_rescale")


class GuidanceFields(TypedDict):
    """The fields of a `ResolvedRequest` that choose how guidance combines the outputs of the network."""

    guidance_method: GuidanceMethod
    apg_eta: float
    apg_momentum: float
    apg_rescale: float


def guidance_method_of(request: Request, *, by_image: bool) -> GuidanceFields:
    """Check the guidance method. `by_image`: the model is guided by an image as well. Raises `InputError`."""
    method, methods = request.guidance_method, get_args(GuidanceMethod)
    if method not in methods:
        expected = f"one of {', '.join(methods)}"
        message = f"guidance_method must be {expected}; got {method!r:.80}."
        raise InputError(message, argument="guidance_method", got=method, expected=expected)
    if method != "cfg" and by_image:
        message = f"this model is guided by text and image, and takes guidance_method='cfg' only; got {method}."
        raise InputError(message, argument="guidance_method", got=method)
    for name in _SETTINGS:
        if method != "apg" and getattr(request, name) != getattr(Request, name):
            raise InputError(f"{name} needs guidance_method='apg'.", argument=name, got=getattr(request, name))
    return GuidanceFields(
        guidance_method=method,
        apg_eta=check_float("apg_eta", request.apg_eta, 1),
        apg_momentum=check_float("apg_momentum", request.apg_momentum, 1, low=-1),
        apg_rescale=check_float("apg_rescale", request.apg_rescale, _MAX_NORM),
    )
