"""AUTOMATIC1111's names of samplers and noise schedules, and their counterparts here."""

from __future__ import annotations

from typing import Any

from ....report.infotext import SAMPLERS, scheduler_of
from ..service import HTTPError

AUTOMATIC = "Automatic"
# The web UI's name in requests -> its label, which is also what an image's text contains.
SCHEDULES = {
    **{"automatic": AUTOMATIC, "uniform": "Uniform", "karras": "Karras", "exponential": "Exponential"},
    **{"normal": "Normal", "beta": "Beta"},
}


def scheduler_from(sampler: str, schedule: str) -> tuple[str, list[str]]:
    """Return the name of a scheduler, and what of the request has no counterpart.

    Args:
        sampler: As "DPM++ 2M", "Euler a", or an older name that contains the schedule: "DPM++ 2M Karras".
        schedule: As "karras", "Karras" or "".

    Raises:
        HTTPError: 404, as in AUTOMATIC1111: there is no such sampler.
    """
    label = SCHEDULES.get(schedule.lower().replace(" ", "_"), schedule) or AUTOMATIC
    name, lost = scheduler_of(sampler, label)
    if name is None:
        known = ", ".join(sampler["name"] for sampler in samplers())
        message = f"Sampler not found: {sampler!r:.80}. Expected one of {known}."
        raise HTTPError(message, status=404, code="Sampler not found")
    return name, lost


def samplers() -> list[dict[str, Any]]:
    """Return the samplers as `/sdapi/v1/samplers` lists them."""
    return [{"name": label, "aliases": [name], "options": {}} for name, label in SAMPLERS.items()]


def schedules() -> list[dict[str, Any]]:
    """Return the noise schedules as `/sdapi/v1/schedulers` lists them."""
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": 7.0 if name == "karras" else -1.0}
        | {"need_inner_model": False}
        for name, label in SCHEDULES.items()
    ]
