"""Requests of OpenVINO: running several at once, each with its share of the rows, and what its errors say."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import BackendError, first_line
from ...system import threads

Array = np.ndarray[Any, Any]


def streams_for(rows: int) -> int:
    """In how many equal groups that many independent rows go through at once: threads that work alone do not wait."""
    return next(n for n in range(min(_threads(), rows), 0, -1) if rows % n == 0)


@functools.cache
def _threads() -> int:
    """Asked once: what is compiled for so many threads stays as it is."""
    return threads.available()


class Request:
    """One of OpenVINO's, for a graph of known sizes, with its tensors as arrays: looking them up costs more.

    Attributes:
        inputs, outputs: OpenVINO's own memory, by each of a tensor's names.
        takes: the names of each input, in order. An input has those of identities too that OpenVINO removed after it.
        made: one name for each output, in order.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled  # with the file that its weights are mapped from
        request = compiled.create_infer_request()
        self.inputs = _arrays(request, compiled.inputs)
        self.outputs = _arrays(request, compiled.outputs)
        self.takes: list[set[str]] = [set(port.get_names()) for port in compiled.inputs]
        self.made = [port.get_any_name() for port in compiled.outputs]
        self.start, self.wait, self.cancel = request.start_async, request.wait, request.cancel

    @property
    def tensor_bytes(self) -> int:
        """Of its inputs and outputs."""
        arrays = {id(a): a.nbytes for a in (*self.inputs.values(), *self.outputs.values())}
        return sum(arrays.values())

    def release(self) -> None:
        """Free the compiled model's buffers of activations, whichever request used them. Inputs and outputs stay."""
        self._compiled.release_memory()


class Requests:
    """The requests of one compiled graph, one for each stream."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = list(requests)

    def requests(self) -> list[Request]:
        """All of them."""
        return self._requests

    def release(self) -> None:
        """Free the graph's buffers of activations."""
        self._requests[0].release()


def _arrays(request: Any, ports: Sequence[Any]) -> dict[str, Array]:
    return {name: request.get_tensor(port).data for port in ports for name in port.get_names()}


def run(requests: Sequence[Request], groups: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """Each request with its group of rows, all at once; the outputs are copies, the groups one after the other.

    An input that is not in its group stays as it was, and what a request does not take is left alone. Raises
    `BackendError`.
    """
    started = []
    try:
        for request, group in zip(requests, groups, strict=True):
            for name, held in request.inputs.items():
                if name in group:
                    held[...] = group[name]
            request.start()
            started.append(request)
        while started:
            started.pop().wait()
    except Exception as failed:
        raise BackendError(plain(failed)) from failed
    finally:
        for request in started:  # one failed, or was interrupted: whoever is next must find the others free
            with suppress(Exception):
                request.cancel()
                request.wait()
    if len(requests) == 1:
        return {name: requests[0].outputs[name].copy() for name in names}
    return {name: np.concatenate([request.outputs[name] for request in requests]) for name in names}


def plain(error: BaseException) -> str:
    """OpenVINO's own words without the places in its source that they went through."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return told[0][:300] if told else first_line(error)
