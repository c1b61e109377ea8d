"""Tests that need a GPU are skipped without one; Triton's interpreter can also run the kernels.

These tests need no other conftest: `pytest --confcutdir=tests/gpu tests/gpu` needs only torch, triton and calotype.
"""

import pytest
import torch
from triton import knobs

from calotype.cuda.device import Gpu
from calotype.cuda.graphs import CapturedGraph, CudaGraphCapturer
from calotype.kernels import add_bias, geglu, group_norm_silu, layer_norm
from tests.helpers import gpu_standins as standins

INTERPRETED = knobs.runtime.interpret
torch.backends.cudnn.allow_tf32 = False  # full float32

if INTERPRETED:
    from triton.runtime import interpreter

    _PATCH, _PATCHED = interpreter._patch_lang, set()

    def _patch_once(function):
        """Patch `triton.language` for good: at every call, also of `tl.sum`, it takes longer than the call itself."""
        if id(function.__globals__) not in _PATCHED:
            _PATCHED.add(id(function.__globals__))
            _PATCH(function)
        return interpreter._LangPatchScope()  # restores nothing

    interpreter._patch_lang = _patch_once


def pytest_collection_modifyitems(items) -> None:
    if torch.cuda.is_available() or INTERPRETED:
        return
    skip = pytest.mark.skip(reason="no GPU (kernels run in Triton's interpreter in tests/kernels)")
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(skip)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def gpu(device) -> Gpu:
    return standins.Host() if device.type == "cpu" else Gpu()


class Captures(CudaGraphCapturer):
    """The real capturer, with a count of captures."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def record(self, function, inputs) -> CapturedGraph:
        self.count += 1
        return super().record(function, inputs)


@pytest.fixture
def recorder():
    return standins.Calls() if INTERPRETED else Captures()


@pytest.fixture(autouse=True)
def _nothing_is_zero_by_chance(monkeypatch) -> None:
    """Fill output memory with NaN or a large integer, so that values that a kernel does not write show."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _filled(getattr(owner, name)))


def _filled(make):
    def filled(*args, **kwargs):
        tensor = make(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    return filled


@pytest.fixture
def references(device, monkeypatch) -> None:
    """Compute the kernels' formulas with torch, because the interpreter takes seconds for a network; not on a GPU."""
    if device.type == "cpu":
        from calotype.cuda.fused import norms, pending  # imports diffusers, which few tests need

        for module, name, kernel in (
            (norms, "group_norm_silu", group_norm_silu),
            (norms, "layer_norm", layer_norm),
            (norms, "geglu", geglu),
            (pending, "add_bias", add_bias),
        ):
            monkeypatch.setattr(module, name, by_reference(kernel.reference))


def by_reference(function):
    def call(x, *args, **kwargs):
        out = function(x, *args, **kwargs)
        if isinstance(out, tuple):
            return tuple(None if t is None else channels_last_as(x, t.to(x.dtype)) for t in out)
        return channels_last_as(x, out.to(x.dtype))

    return call


def channels_last_as(x, out):
    """Return a tensor of its own: the formula may return x."""
    order = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return out.clone(memory_format=order)
