"""OpenVINO infer requests: run several at once, each on a part of the rows, and shorten their error messages."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import BackendError, first_line
from ...system import threads
from ..base import Array


def streams_for(rows: int) -> int:
    """Return the number of equal groups in which independent rows run at once: separate threads need not wait."""
    return next(n for n in range(min(_threads(), rows), 0, -1) if rows % n == 0)


@functools.cache
def _threads() -> int:
    """Return the number of threads, read once: compiled networks depend on it."""
    return threads.available()


class Request:
    """An infer request for a graph of known sizes. It keeps its tensors as arrays, as looking them up is slow.

    Attributes:
        inputs, outputs: views of OpenVINO's memory, by each of a tensor's names.
        output_names: one name for each output, in order.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled  # keeps the file alive that its weights are mapped from
        request = compiled.create_infer_request()
        self.inputs = _arrays(request, compiled.inputs)
        self.outputs = _arrays(request, compiled.outputs)
        self.output_names = [port.get_any_name() for port in compiled.outputs]
        self.start, self.wait, self.cancel = request.start_async, request.wait, request.cancel

    @property
    def tensor_bytes(self) -> int:
        """The size of its inputs and outputs."""
        arrays = {id(a): a.nbytes for a in (*self.inputs.values(), *self.outputs.values())}
        return sum(arrays.values())

    def release(self) -> None:
        """Free the compiled model's activation buffers for all its requests. Inputs and outputs stay."""
        self._compiled.release_memory()


class Compiled:
    """A graph that is compiled for the shapes of a call. `requests` holds its weights, once for each stream."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests

    def release(self) -> None:
        """Free the activation buffers; the next run allocates them again."""
        self.requests[0].release()


def _arrays(request: Any, ports: Sequence[Any]) -> dict[str, Array]:
    return {name: request.get_tensor(port).data for port in ports for name in port.get_names()}


def run(requests: Sequence[Request], groups: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, Array]:
    """Run each request on its group of rows, all at once, and return copies of the outputs, concatenated by rows.

    An input that is missing in a group keeps its values. An array that a request has no input for is ignored.

    Raises:
        BackendError: a request failed.
    """
    started = []
    try:
        for request, group in zip(requests, groups, strict=True):
            for name, tensor in request.inputs.items():
                if name in group:
                    tensor[...] = group[name]
            request.start()
            started.append(request)
        while started:
            started.pop().wait()
    except Exception as failed:
        raise BackendError(plain(failed), backend="openvino") from failed
    finally:
        for request in started:  # one failed or was interrupted: the next run needs the others idle
            with suppress(Exception):
                request.cancel()
                request.wait()
    if len(requests) == 1:
        return {name: requests[0].outputs[name].copy() for name in names}
    return {name: np.concatenate([request.outputs[name] for request in requests]) for name in names}


def plain(error: BaseException) -> str:
    """Return OpenVINO's error message without the source locations that it went through."""
    lines = [line.strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return messages[0][:300] if messages else first_line(error)
