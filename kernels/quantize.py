"""Quantization to fp8 at the end of another kernel, with one scale for a tensor, read from device memory.

q = y / scale in float8_e4m3fn, clamped to its largest number, 448

`layer_norm` and `geglu` end with it if they get a scale, a float32 [1] on the device. Then the next product reads a
quarter of float32's bytes, and quantization needs no extra pass. The `cuda` backend has no quantized network yet: only
the tests use a scale.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import require, wide

MAX_VALUE = 448.0


@triton.jit
def stored(y, scale, kind: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Convert y to the type of a stored tensor; `scale` is None without quantization."""
    if scale is not None:
        y = tl.minimum(tl.maximum(y / tl.load(scale), -448.0), 448.0)
    return y.to(kind)


def result_type(x: Tensor, fp8_scale: Tensor | None) -> torch.dtype:
    """Return the type of the result for the input x. Raise `ValueError` for an invalid scale."""
    if fp8_scale is None:
        return x.dtype
    require(fp8_scale.dtype == torch.float32 and fp8_scale.numel() == 1, "one scale in float32", [fp8_scale])
    return torch.float8_e4m3fn


def reference(y: Tensor, fp8_scale: Tensor) -> Tensor:
    """Compute the same with torch in float32."""
    return (wide(y) / fp8_scale).clamp(-MAX_VALUE, MAX_VALUE).to(torch.float8_e4m3fn)
