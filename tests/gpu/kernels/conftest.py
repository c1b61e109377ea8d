"""Tolerances for kernels: two times the error of torch in the same type, against float32."""

import pytest
import torch
from triton import knobs

if knobs.runtime.interpret:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    _CAST = interpreter.InterpreterBuilder.cast_impl

    def _rounded(self, source, kind):
        """Convert to bfloat16 as GPUs do: round to nearest, half to even. The interpreter truncates."""
        if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return _CAST(self, source, kind)
        bits = source.data.view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16)
        return interpreter.TensorHandle(rounded, kind.scalar)

    _CONVERT, _DOT = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def _to_fp8(data, source, kind, mode):
        """Convert to float8_e4m3fn as GPUs and torch do: round to nearest. The interpreter truncates."""
        if source != tl.float32 or kind != tl.float8e4nv:
            return _CONVERT(data, source, kind, mode)
        eight = torch.from_numpy(np.ascontiguousarray(data)).to(torch.float8_e4m3fn)
        return eight.view(torch.uint8).numpy()

    def _dot(self, a, b, *rest):
        """Multiply bfloat16 as float32. The interpreter would multiply its bits as integers."""
        wide = [
            interpreter.TensorHandle((h.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
            if h.dtype.scalar == tl.bfloat16
            else h
            for h in (a, b)
        ]
        return _DOT(self, *wide, *rest)

    interpreter.InterpreterBuilder.cast_impl = _rounded
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._convert_float = _to_fp8


def _off(got: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the relative L2 error and the largest difference."""
    apart = (got.double() - expected.double()).abs()
    return float(apart.norm() / expected.double().norm().clamp(min=1e-30)), float(apart.max())


@pytest.fixture
def no_worse_than_torch():
    """A check of (kernel, torch in the same type, reference): at most two times torch's own error.

    If torch is nearly exact, the limit is two units in float32's last place; on a GPU eight, as its exponentials, roots
    and quotients are approximate.
    """

    def check(got: torch.Tensor, by_torch: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.dtype == by_torch.dtype
        assert got.shape == by_torch.shape == expected.shape
        assert torch.isfinite(got).all()
        floor = (2 if knobs.runtime.interpret else 8) * torch.finfo(torch.float32).eps
        scale = float(expected.abs().max())
        (l2, largest), (torch_l2, torch_largest) = _off(got, expected), _off(by_torch, expected)
        assert l2 <= 2 * max(torch_l2, floor), (l2, torch_l2)
        assert largest <= 2 * max(torch_largest, floor * scale), (largest, torch_largest)

    return check


@pytest.fixture
def widened(dtype):
    """Convert tensors to the reference's type: float64 for float32, float32 for half types."""
    kind = torch.float64 if dtype == torch.float32 else torch.float32
    return lambda *tensors: [None if t is None else t.to(kind) for t in tensors]


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture
def randn(device):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return draw
