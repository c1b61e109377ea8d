"""Requests of OpenVINO: running several at once, each with its share of the rows, and what its errors say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from calotype import threads
from calotype.errors import BackendError, first_line

Array = np.ndarray[Any, Any]


def streams_for(rows: int) -> int:
    """In how many equal groups that many independent rows go through at once: threads that work alone do not wait."""
    return max(n for n in range(1, threads.available() + 1) if rows % n == 0)


def run(requests: Sequence[Any], groups: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """Each request with its group of rows, all at once; the outputs are copies, the groups one after the other.

    An input that is not in its group stays as it was. Raises `BackendError`.
    """
    started = []
    try:
        for request, group in zip(requests, groups, strict=True):
            for name, array in group.items():
                request.get_tensor(name).data[...] = array
            request.start_async()
            started.append(request)
        while started:
            started.pop().wait()
        outputs = {name: [request.get_tensor(name).data for request in requests] for name in names}
    except Exception as failed:
        raise BackendError(plain(failed)) from failed
    finally:
        for request in started:  # one failed, or was interrupted: whoever is next must find the others free
            with suppress(Exception):
                request.cancel()
                request.wait()
    return {name: np.concatenate(found) if len(found) > 1 else found[0].copy() for name, found in outputs.items()}


def plain(error: BaseException) -> str:
    """OpenVINO's own words without the places in its source that they went through."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return told[0][:300] if told else first_line(error)
