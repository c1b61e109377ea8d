"""GEGLU: a gated linear unit with GELU as its gate, after the projection of both (Shazeer 2020, arXiv 2002.05202).

y = a gelu(b)        a, b the halves of x;  gelu(b) = b (1 + erf(b / sqrt 2)) / 2, as in diffusers
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launch import Launch, require, wide
from .quantize import result_type, stored

_BLOCK = 1024


@triton.jit
def _geglu(x, out, scale, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    here = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = here < width
    a = tl.load(x + row * 2 * width + here, mask=there, other=0).to(tl.float32)
    b = tl.load(x + row * 2 * width + width + here, mask=there, other=0).to(tl.float32)
    y = a * (0.5 * b * (1 + tl.erf(b * 0.7071067811865476)))
    tl.store(out + row * width + here, stored(y, scale, out.dtype.element_ty), mask=there)


def geglu(x: Tensor, *, fp8_scale: Tensor | None = None) -> Tensor:
    """Compute a gelu(b), in fp8 if there is a scale (see `quantize`).  # [..., 2 D] -> [..., D]

    Raises `ValueError` if x is not contiguous, or its width is odd.
    """
    return launch(x, fp8_scale=fp8_scale).run()


def launch(x: Tensor, *, fp8_scale: Tensor | None = None) -> Launch:
    """Return the launch. Its arguments contain `out`."""
    require(x.is_contiguous() and x.shape[-1] % 2 == 0, "x [..., 2 D], contiguous", [x])
    width = x.shape[-1] // 2
    block = min(_BLOCK, triton.next_power_of_2(width))
    out = x.new_empty(*x.shape[:-1], width, dtype=result_type(x, fp8_scale))
    return Launch(
        kernel=_geglu,
        grid=(x.numel() // (2 * width), triton.cdiv(width, block)),
        arguments={"x": x, "out": out, "width": width, "scale": fp8_scale},
        constants={"BLOCK": block},
        warps=4,
    )


def reference(x: Tensor) -> Tensor:
    """Compute the same with torch in float32."""
    a, b = wide(x).chunk(2, dim=-1)
    y: Tensor = a * functional.gelu(b)
    return y
