"""The autoencoder's pixels to bytes, channels last: what a picture's file holds.

y = rint(255 clamp(x / 2 + 1/2, 0, 1))        a half to the even side, as numpy, torch and diffusers round
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, blocks, require

_BLOCK = 512
_CHANNELS = 4  # that a program has room for: three, in a power of two


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
    # Numbers from 2^23 to 2^24 are whole, so the sum is rounded to one, a half to the even side.
    v = (v + 8388608.0) - 8388608.0
    tl.store(out + (image * pixels + pixel[:, None]) * channels + channel[None, :], v.to(tl.uint8), mask=there)


def to_uint8(x: Tensor) -> Tensor:
    """Pixels in about [-1, 1] to bytes; x may lie in any order.  # [B, 3, H, W] -> [B, H, W, 3]

    Raises `ValueError` where x has more than four channels.
    """
    (launch,) = launches(x)
    launch()
    out = launch.arguments["out"]
    assert isinstance(out, Tensor)
    return out


def launches(x: Tensor) -> Sequence[Launch]:
    """The launch; its arguments have `out`."""
    require(x.ndim == 4 and x.shape[1] <= _CHANNELS, f"x [B, C, H, W] of at most {_CHANNELS} channels", [x])
    batch, channels, height, width = x.shape
    strides = dict(zip(("stride_b", "stride_c", "stride_h", "stride_w"), x.stride(), strict=True))
    out = torch.empty(batch, height, width, channels, dtype=torch.uint8, device=x.device)
    return [
        Launch(
            kernel=_to_uint8,
            grid=(blocks(height * width, _BLOCK), batch),
            arguments={"x": x, "out": out, "channels": channels, "pixels": height * width, "width": width, **strides},
            constants={"C": _CHANNELS, "BLOCK": _BLOCK},
            warps=4,
            exact=True,
        )
    ]


def reference(x: Tensor) -> Tensor:
    """The same in float32, by torch."""
    unit = (x.float().nan_to_num(nan=-1) * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
