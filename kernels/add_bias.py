"""The sum of a channels-last image, a residual and a bias of the channels, in one pass.

s = x + residual + bias        the bias of a convolution, which cuDNN would add in a kernel of its own
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, require, wide

_BLOCK = 2048


@triton.jit
def _add_bias(x, residual, bias, out, numbers, C: tl.constexpr, BLOCK: tl.constexpr):
    here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = here < numbers
    s = tl.load(x + here, mask=there, other=0).to(tl.float32)
    if residual is not None:
        s += tl.load(residual + here, mask=there, other=0).to(tl.float32)
    if bias is not None:
        s += tl.load(bias + here % C, mask=there, other=0).to(tl.float32)
    tl.store(out + here, s.to(out.dtype.element_ty), mask=there)


def add_bias(x: Tensor, *, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return s.  # [B, C, H, W] channels last, residual the same, bias [C] -> [B, C, H, W] channels last

    Raises `ValueError` if the shapes or the memory layouts do not match.
    """
    return launch(x, residual=residual, bias=bias).run()


def launch(x: Tensor, *, residual: Tensor | None = None, bias: Tensor | None = None) -> Launch:
    """Return the launch. Its arguments contain `out`."""
    tensors = [x, residual, bias]
    last = all(t is None or t.is_contiguous(memory_format=torch.channels_last) for t in (x, residual))
    require(x.ndim == 4 and last, "x and residual [B, C, H, W] in channels last", tensors)
    require(residual is None or residual.shape == x.shape, "a residual of x's shape", tensors)
    require(bias is None or bias.shape == x.shape[1:2], "a bias for each channel", tensors)
    block = min(_BLOCK, triton.next_power_of_2(x.numel()))
    return Launch(
        kernel=_add_bias,
        grid=(triton.cdiv(x.numel(), block),),
        arguments={"x": x, "residual": residual, "bias": bias, "out": torch.empty_like(x), "numbers": x.numel()},
        constants={"C": x.shape[1], "BLOCK": block},
        warps=4,
    )


def reference(x: Tensor, *, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Compute the same with torch in float32."""
    s = wide(x) if residual is None else wide(x) + wide(residual)
    return s if bias is None else s + wide(bias)[:, None, None]
