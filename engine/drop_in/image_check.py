"""Compare the first image of an accelerated pipeline with eager's: the same call runs a second time in PyTorch.

A pipeline's call is a method of its class, so `watch` wraps that method as long as a pipeline of the class waits for
its check. Other pipelines of the class pass through.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import first_line
from .forward import Forward, eager_only

MIN_DB, MIN_DB_HALF = 40.0, 25.0  # all in float32; eager or an artifact in another precision, whose rounding is most

_lock = threading.RLock()
_waiting: weakref.WeakKeyDictionary[Any, ImageCheck] = weakref.WeakKeyDictionary()
_checks: weakref.WeakKeyDictionary[Any, ImageCheck] = weakref.WeakKeyDictionary()  # also those that are done
_wrapped: dict[type, Any] = {}  # class -> the __call__ of its own, or None if it inherits it


@dataclass
class ImageCheck:
    """The check of one pipeline: its networks, and the result."""

    forwards: weakref.WeakSet[Forward]
    psnr_db: float | None = None
    note: str = "not compared with eager yet"


def watch(pipe: Any, forwards: Sequence[Forward]) -> ImageCheck:
    """Check the first call of the pipeline."""
    check = ImageCheck(weakref.WeakSet(forwards))
    kind = type(pipe)
    if not callable(pipe):
        return check
    with _lock:
        _waiting[pipe] = _checks[pipe] = check
        if kind not in _wrapped:
            _wrapped[kind] = kind.__dict__.get("__call__")
            kind.__call__ = _checking(kind.__call__)
    return check


def check_of(pipe: Any) -> ImageCheck | None:
    """Return the check of a pipeline, or None."""
    return _checks.get(pipe)


def forget(pipe: Any) -> None:
    """Check no call of this pipeline, and forget its result."""
    _unwatch(pipe)
    _checks.pop(pipe, None)


def _unwatch(pipe: Any) -> None:
    """Check no call of this pipeline any more, and leave its class as it was."""
    with _lock:
        _waiting.pop(pipe, None)
        kind = type(pipe)
        if kind in _wrapped and not any(type(other) is kind for other in _waiting):
            own = _wrapped.pop(kind)
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own


def _checking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        check = _waiting.get(self)
        if check is None or any(value is not None for name, value in kwargs.items() if "callback" in name):
            return original(self, *args, **kwargs)  # a callback must not run twice
        before, counted = random_state(args, kwargs), sum(each.compiled_calls for each in check.forwards)
        result = original(self, *args, **kwargs)
        if sum(each.compiled_calls for each in check.forwards) == counted or self not in _waiting:
            return result
        _unwatch(self)
        print("calotype: the first image runs in PyTorch as well, to compare (verify=False skips it)", file=sys.stderr)
        after = random_state(args, kwargs)
        restore_random(before)
        try:
            with eager_only():
                expected = original(self, *args, **kwargs)
        except Exception as failed:  # the image is there; only the comparison is not
            check.note = f"not compared: the same call failed in PyTorch ({first_line(failed)})"
            return result
        finally:
            restore_random(after)
        return result if _accepted(check, result, expected) else expected

    return call


def _accepted(check: ImageCheck, result: Any, expected: Any) -> bool:
    limit = MIN_DB if all(each.is_exact for each in check.forwards) else MIN_DB_HALF
    check.psnr_db = psnr_db(result, expected)
    check.note = f"{check.psnr_db:.1f} dB from eager's"
    if check.psnr_db >= limit:
        return True
    check.note += f" (at least {limit:.0f} dB is expected): all networks stay in eager PyTorch"
    print(f"calotype: the image has {check.note}", file=sys.stderr)
    for each in check.forwards:
        each.refuse(f"the image has {check.psnr_db:.1f} dB from eager's, expected {limit:.0f}")
    return False


def psnr_db(result: Any, expected: Any) -> float:
    """Return the PSNR between the arrays and images in two outputs, in dB; infinite if they are equal, 0 if unlike."""
    ours, theirs = list(_arrays_in(result)), list(_arrays_in(expected))
    if [a.shape for a in ours] != [a.shape for a in theirs]:
        return 0.0
    if not theirs:
        return float("inf")
    peak = max(1.0, *(float(np.ptp(a)) if a.size else 0.0 for a in theirs))
    error = float(np.mean([np.square(a - b).mean() for a, b in zip(ours, theirs, strict=True) if a.size] or [0.0]))
    if not np.isfinite(error):
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
        return float("inf") if same else 0.0
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def _arrays_in(value: Any) -> Iterator[NDArray[np.float64]]:
    from PIL import Image

    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().double().numpy()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        yield value.astype(np.float64)
    elif isinstance(value, Image.Image):
        yield np.asarray(value, np.float64) / 255
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _arrays_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _arrays_in(each)


RandomState = list[tuple[Callable[[Any], Any], Any]]


def random_state(args: Sequence[Any], kwargs: Mapping[str, Any]) -> RandomState:
    """Return the states of the generators in a call, and of the global ones, each with the function that sets it."""
    state: RandomState = [(torch.set_rng_state, torch.get_rng_state()), (np.random.set_state, np.random.get_state())]
    for value in (*args, *kwargs.values()):
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, torch.Generator):
                state.append((each.set_state, each.get_state()))
    return state


def restore_random(state: RandomState) -> None:
    """Put the states of the generators back."""
    for set_state, value in state:
        set_state(value)
