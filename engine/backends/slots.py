"""Network calls of several requests that run together. An error of one of them does not end the others.

A backend decides what "together" is: one call with the rows of all, or a stream for each. This module knows sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..errors import first_line
from ..system import forks
from ..system.trace import span
from .base import ReadyCall
from .component import LoadedComponent, all_finite
from .session import NetworkCall, Outputs


def batch_key(call: NetworkCall) -> tuple[object, ...]:
    """Return what must agree in calls that run together: the network, and the shapes of its inputs besides the rows.

    A network whose rows see each other runs alone.
    """
    session, changing = call.session, tuple((name, array.shape[1:]) for name, array in call.changing.items())
    coupled = session.coupled or any(name == "control_type" for name, _ in session.constant_shapes)
    network = id(session if coupled else session.component)
    return network, session.cache_interval, call.sample.shape[1:], changing, session.constant_shapes


def run_together(calls: Sequence[NetworkCall]) -> tuple[list[Outputs | Exception], str]:
    """Run calls whose `batch_key` agrees.

    Returns:
        The outputs of each call, or its error; and why they ran one after another, or an empty text.
    """
    reason = ""
    if len(calls) > 1:
        try:
            return [*_run(calls[0].session.component, calls)], ""
        except Exception as failed:
            reason = first_line(failed)
    return [_run_alone(call) for call in calls], reason


def _run_alone(call: NetworkCall) -> Outputs | Exception:
    try:
        return call.run()
    except Exception as failed:
        return failed


def _run(component: LoadedComponent, calls: Sequence[NetworkCall]) -> list[Outputs]:
    component.reopen_after_fork()
    runner = component.runner
    with span(component.component.name), forks.running():
        ready = [
            ReadyCall(each.session.on(runner, *each[1:]), *each[1:], partial(each.session.inputs, *each[1:]))
            for each in calls
        ]
        outputs = runner.run_together(ready)
    if not all(map(all_finite, outputs)):
        raise FloatingPointError("an output is not finite")
    return outputs
