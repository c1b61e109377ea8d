"""Types and a seed for kernels, and corrections of Triton's interpreter."""

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


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
