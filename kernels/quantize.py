"""Quantization to eight bits at the end of another kernel, with one scale for a tensor, read from device memory.

    int8:  q = rint(y / scale), clamped to -127 and 127      rounds half to even, as ONNX's QuantizeLinear
    fp8:   q = y / scale in float8_e4m3fn, clamped to its largest number, 448

This is a part of kernels: `group_norm_silu`, `layer_norm` and `geglu` end with it if they get a scale. Then the next
product reads a quarter of float32's bytes, and quantization needs no extra pass. The `cuda` backend has no quantized
network yet: only the tests use a scale.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import wide

MAX_VALUE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The storage of a result: `scale` is float32 [1], on the device; `dtype` is int8 or float8_e4m3fn."""

    scale: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in MAX_VALUE or self.scale.dtype != torch.float32 or self.scale.numel() != 1:
            raise ValueError(
                f"Invalid scale: got {self.scale.dtype} {list(self.scale.shape)}, and {self.dtype}; "
                "expected one scale in float32, and int8 or float8_e4m3fn."
            )


@triton.jit
def stored(y, scale, kind: tl.constexpr):  # noqa: ANN201 - Triton's language
    """Convert y to the type of a stored tensor; `scale` is None without quantization."""
    if scale is not None:
        limit: tl.constexpr = 127.0 if kind == tl.int8 else 448.0
        y = tl.minimum(tl.maximum(y / tl.load(scale), -limit), limit)
        if kind == tl.int8:
            # Numbers near 1.5 * 2^23 are integers, so the sum rounds to an integer, half to even.
            y = (y + 12582912.0) - 12582912.0
    return y.to(kind)


def empty_for(like: Tensor, quantized: Scale | None) -> Tensor:
    """Allocate the result, in the input's type or in `quantized.dtype`."""
    return torch.empty_like(like) if quantized is None else torch.empty_like(like, dtype=quantized.dtype)


def reference(y: Tensor, quantized: Scale | None) -> Tensor:
    """Compute the same with torch in float32."""
    if quantized is None:
        return y
    limit = MAX_VALUE[quantized.dtype]
    scaled = (wide(y) / quantized.scale).clamp(-limit, limit)
    return (scaled.round() if quantized.dtype == torch.int8 else scaled).to(quantized.dtype)
