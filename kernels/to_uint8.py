"""Convert the VAE's pixels to bytes, channels last, the content of an image file.

y = rint(255 clamp(x / 2 + 1/2, 0, 1))        rounds half to even, as numpy, torch and diffusers
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, require

_BLOCK = 512
_CHANNELS = 4  # the maximum in a program: three, rounded up to a power of two


@triton.jit
def _to_uint8(
    x, out, channels, pixels, width, stride_b, stride_c, stride_h, stride_w, C: tl.constexpr, BLOCK: tl.constexpr
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C)
    there = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    place = (pixel // width * stride_h + pixel % width * stride_w)[:, None] + channel[None, :] * stride_c  # [P, C]
    v = tl.load(x + image * stride_b + place, mask=there, other=0).to(tl.float32)
    v = tl.where(v == v, v, -1.0)
    v = tl.minimum(tl.maximum(v * 0.5 + 0.5, 0.0), 1.0) * 255
    # Numbers from 2^23 to 2^24 are integers, so the sum rounds to an integer, half to even.
    v = (v + 8388608.0) - 8388608.0
    tl.store(out + (image * pixels + pixel[:, None]) * channels + channel[None, :], v.to(tl.uint8), mask=there)


def to_uint8(x: Tensor) -> Tensor:
    """Convert pixels in about [-1, 1] to bytes; x may have any strides.  # [B, 3, H, W] -> [B, H, W, 3]

    Raises `ValueError` if x has more than four channels.
    """
    return launch(x).run()


def launch(x: Tensor) -> Launch:
    """Return the launch. Its arguments contain `out`."""
    require(x.ndim == 4 and x.shape[1] <= _CHANNELS, f"x [B, C, H, W] of at most {_CHANNELS} channels", [x])
    batch, channels, height, width = x.shape
    strides = dict(zip(("stride_b", "stride_c", "stride_h", "stride_w"), x.stride(), strict=True))
    out = torch.empty(batch, height, width, channels, dtype=torch.uint8, device=x.device)
    return Launch(
        kernel=_to_uint8,
        grid=(triton.cdiv(height * width, _BLOCK), batch),
        arguments={"x": x, "out": out, "channels": channels, "pixels": height * width, "width": width, **strides},
        constants={"C": _CHANNELS, "BLOCK": _BLOCK},
        warps=4,
        exact=True,
    )


def reference(x: Tensor) -> Tensor:
    """Compute the same with torch in float32."""
    unit = (x.float().nan_to_num(nan=-1) * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
