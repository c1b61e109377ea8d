"""Eight bits at the end of another kernel: one scale for a whole tensor, read from device memory.

    int8:  q = rint(y / scale), kept within -127 and 127      a half to the even side, as ONNX's QuantizeLinear rounds
    fp8:   q = y / scale in float8_e4m3fn, kept within its largest number, 448

A part of kernels, and no kernel itself: `group_norm_silu`, `layer_norm` and `geglu` end with it where they are given a
scale, so that what a next product reads is a quarter of float32's bytes, and no pass of its own makes it. No network of
the `cuda` backend is quantized yet: nothing but the tests gives one.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import wide

MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a result is stored: `scale` is float32 [1], on the device; `dtype` int8 or float8_e4m3fn."""

    scale: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in MOST or self.scale.dtype != torch.float32 or self.scale.numel() != 1:
            raise ValueError(
                f"wanted one scale in float32, and int8 or float8_e4m3fn; got {self.scale.dtype} "
                f"{list(self.scale.shape)}, and {self.dtype}."
            )


@triton.jit
def stored(y, scale, kind: tl.constexpr):  # noqa: ANN201 - Triton's language
    """y as it is written to a tensor of this type; `scale` is None where it is not quantized."""
    if scale is not None:
        most: tl.constexpr = 127.0 if kind == tl.int8 else 448.0
        y = tl.minimum(tl.maximum(y / tl.load(scale), -most), most)
        if kind == tl.int8:
            # Numbers about 1.5 * 2^23 are whole, so the sum is rounded to one, a half to the even side.
            y = (y + 12582912.0) - 12582912.0
    return y.to(kind)


def empty_for(like: Tensor, quantized: Scale | None) -> Tensor:
    """Memory for the result: of the input's type, or of the eight bits asked for."""
    return torch.empty_like(like) if quantized is None else torch.empty_like(like, dtype=quantized.dtype)


def reference(y: Tensor, quantized: Scale | None) -> Tensor:
    """The same in float32, by torch."""
    if quantized is None:
        return y
    most = MOST[quantized.dtype]
    scaled = (wide(y) / quantized.scale).clamp(-most, most)
    return (scaled.round() if quantized.dtype == torch.int8 else scaled).to(quantized.dtype)
