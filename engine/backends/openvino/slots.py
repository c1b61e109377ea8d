"""Calls of several sessions at once, each in a stream of its own: threads that need not wait for each other.

The calls may differ in their shapes. A large network gains nothing from it, and would hold its weights once more: its
calls run one after another, each on all threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...errors import BackendError
from ..base import Array, ReadyCall
from .network import Network
from .requests import Request, plain, streams_for
from .session import OpenVinoSession

_LARGE_BYTES = 512 << 20  # of weights

Outputs = dict[str, Array]


def width_of(network: Network) -> int:
    """Return how many calls run at once."""
    return 1 if network.weights_bytes > _LARGE_BYTES else streams_for(1 << 10)


def run_together(network: Network, calls: Sequence[ReadyCall]) -> list[Outputs]:
    """Return the outputs of each call. Raises `BackendError` if one fails."""
    streams = width_of(network)
    if streams == 1:
        return [each.run() for each in calls]
    apart = [i for i, each in enumerate(calls) if not _takes_stream(each)]
    outputs = {i: calls[i].run() for i in apart}
    rest = [i for i in range(len(calls)) if i not in outputs]
    with network.lock:
        outputs |= dict(zip(rest, _run(network, [calls[i] for i in rest], streams), strict=True))
    return [outputs[i] for i in range(len(calls))]


def _takes_stream(call: ReadyCall) -> bool:
    return isinstance(call.session, OpenVinoSession) and call.session.runs_in_a_stream(call.sample)


def _run(network: Network, calls: Sequence[ReadyCall], streams: int) -> list[Outputs]:
    """Start each call when a stream is free.  # [1, C, h, w] each"""
    outputs: list[Outputs] = []
    running: deque[Request] = deque()  # in the order of the calls

    def finish() -> None:
        running[0].wait()
        request = running.popleft()
        outputs.append({name: request.outputs[name].copy() for name in network.output_names})

    try:
        for each in calls:
            assert isinstance(each.session, OpenVinoSession)
            parts, inputs = each.session.in_a_stream(each.call, each.sample, each.changing, streams)
            if len(running) == streams:
                finish()
            request = next(request for request in parts.per_step if request not in running)
            _start(request, inputs)
            running.append(request)
        while running:
            finish()
    except BackendError:
        raise
    except Exception as failed:
        raise BackendError(plain(failed), backend="openvino", component=network.name) from failed
    finally:
        for request in running:  # one failed or was interrupted: the next run needs the others idle
            with suppress(Exception):
                request.cancel()
                request.wait()
    return outputs


def _start(request: Request, inputs: Mapping[str, Array]) -> None:
    for name, tensor in request.inputs.items():
        if name in inputs:
            tensor[...] = inputs[name]
    request.start()
