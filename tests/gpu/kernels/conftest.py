"""How far a kernel may be from float32: as far as torch in the same type, twice."""

import pytest
import torch
from triton import knobs

if knobs.runtime.interpret:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    _CAST = interpreter.InterpreterBuilder.cast_impl

    def _rounded(self, source, kind):
        """To bfloat16 as GPUs do, to the nearest and a half to the even side; the interpreter cuts off."""
        if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return _CAST(self, source, kind)
        bits = source.data.view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        found = np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16)
        return interpreter.TensorHandle(found, kind.scalar)

    _CONVERT, _DOT = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def _to_fp8(data, source, kind, mode):
        """To float8_e4m3fn as GPUs and torch do, to the nearest; the interpreter cuts off."""
        if source != tl.float32 or kind != tl.float8e4nv:
            return _CONVERT(data, source, kind, mode)
        eight = torch.from_numpy(np.ascontiguousarray(data)).to(torch.float8_e4m3fn)
        return eight.view(torch.uint8).numpy()

    def _dot(self, a, b, *rest):
        """Of bfloat16 too, which the interpreter would multiply by its bits."""
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


def _off(got: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Relative L2, and the largest difference."""
    apart = (got.double() - wanted.double()).abs()
    return float(apart.norm() / wanted.double().norm().clamp(min=1e-30)), float(apart.max())


@pytest.fixture
def no_worse_than_torch():
    """A check of (kernel's, torch's in the same type, the reference's): at most twice torch's own distance.

    Where torch happens to be nearly exact, two units in float32's last place are the measure; eight on a GPU, whose
    exponentials, roots and quotients are approximate.
    """

    def check(got: torch.Tensor, by_torch: torch.Tensor, wanted: torch.Tensor) -> None:
        assert got.dtype == by_torch.dtype
        assert got.shape == by_torch.shape == wanted.shape
        assert torch.isfinite(got).all()
        least = (2 if knobs.runtime.interpret else 8) * torch.finfo(torch.float32).eps
        scale = float(wanted.abs().max())
        (l2, most), (torch_l2, torch_most) = _off(got, wanted), _off(by_torch, wanted)
        assert l2 <= 2 * max(torch_l2, least), (l2, torch_l2)
        assert most <= 2 * max(torch_most, least * scale), (most, torch_most)

    return check


@pytest.fixture
def widened(dtype):
    """Tensors as the reference takes them for the truth: float32 is held to float64, half types to float32."""
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
