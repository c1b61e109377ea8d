"""Group normalization and SiLU of channels-last images, with the additions before it (Wu and He 2018, 1803.08494).

    s = [x + time + residual, skip]                            skip: more channels, behind the others
    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias       over the pixels and channels of a group
    y = y sigmoid(y)

Means and variances are merged tile by tile (Chan, Golub and LeVeque 1983), so a mean far from zero loses no digits.
One program reads a small group two times. A large group is split over the pixels: a first kernel computes the moments
of each part, and a second one merges them and normalizes. s is stored where the next layers need it, plus a bias of
theirs if there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launch import Arguments, Launch, require, wide

_TILE = 2048  # the numbers that a program holds at once
_SMALL = 16384  # the largest group, in numbers, for one program
_MAX_PARTS = 128  # of a group: every program of the second kernel reads the moments of all parts
_WIDE = 64  # adjacent channels that fill cache lines


@dataclass(frozen=True, kw_only=True)
class GroupNorm:
    """The layer: its parameters, and whether SiLU follows."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]
    groups: int = 32
    eps: float = 1e-5
    silu: bool = True


@triton.jit
def _tile(
    x, time, residual, skip, pixel, image, pixels, group,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Load s for some pixels and groups; return s, its offsets and its mask.  # [P], [G] -> [P, G, LANES]"""
    lane = tl.arange(0, LANES)
    channel = group[:, None] * WIDTH + lane[None, :]  # [G, LANES]
    there = (pixel < pixels)[:, None, None] & (lane < WIDTH)[None, None, :] & (group >= 0)[None, :, None]
    row = (image * pixels + pixel).to(tl.int64)[:, None, None]
    place = row * C + channel[None, :, :]
    if skip is None:
        own, from_x = there, place
        s = tl.load(x + from_x, mask=own, other=0).to(tl.float32)
    else:
        own, from_x = there & (channel < OWN)[None, :, :], row * OWN + channel[None, :, :]
        s = tl.load(x + from_x, mask=own, other=0).to(tl.float32)
        from_skip = row * (C - OWN) + (channel - OWN)[None, :, :]
        s += tl.load(skip + from_skip, mask=there & (channel >= OWN)[None, :, :], other=0).to(tl.float32)
    if time is not None:
        mask = (lane < WIDTH)[None, :] & (channel < OWN)
        added = tl.load(time + image * ROW + channel, mask=mask, other=0).to(tl.float32)
        s += tl.where(own, added[None, :, :], 0)
    if residual is not None:
        s += tl.load(residual + from_x, mask=own, other=0).to(tl.float32)
    return s, place, there


@triton.jit
def _moments(
    x, time, residual, skip, total, stored_bias, start, stop, image, pixels, group,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Return each group's mean and centered sum of squares over the pixels from `start` to `stop`.  # [G], [G]"""
    count = 0.0
    mean = tl.zeros([group.shape[0]], tl.float32)
    squares = tl.zeros([group.shape[0]], tl.float32)
    for first in range(start, stop, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        pixel = tl.where(pixel < stop, pixel, pixels)
        s, place, there = _tile(x, time, residual, skip, pixel, image, pixels, group, C, OWN, ROW, WIDTH, LANES)
        if total is not None:
            kept = s
            if stored_bias is not None:
                lane = tl.arange(0, LANES)
                channel = group[:, None] * WIDTH + lane[None, :]
                added = tl.load(stored_bias + channel, mask=(lane < WIDTH)[None, :], other=0).to(tl.float32)
                kept = s + added[None, :, :]
            tl.store(total + place, kept.to(total.dtype.element_ty), mask=there)
        more = ((tl.minimum(first + PIXELS, stop) - first) * WIDTH).to(tl.float32)
        tile_mean = tl.sum(tl.sum(s, axis=2), axis=0) / more
        off = tl.where(there, s - tile_mean[None, :, None], 0)
        tile_squares = tl.sum(tl.sum(off * off, axis=2), axis=0)
        apart = tile_mean - mean
        squares += tile_squares + apart * apart * (count * more / (count + more))
        mean += apart * (more / (count + more))
        count += more
    return mean, squares


@triton.jit
def _normalize(
    x, time, residual, skip, weight, bias, out, mean, scale, start, stop, image, pixels, group,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Compute and store y for the pixels from `start` to `stop`.  # mean [G], scale [G]"""
    lane = tl.arange(0, LANES)
    channel = group[:, None] * WIDTH + lane[None, :]
    w = tl.load(weight + channel, mask=(lane < WIDTH)[None, :], other=0).to(tl.float32) * scale[:, None]
    b = tl.load(bias + channel, mask=(lane < WIDTH)[None, :], other=0).to(tl.float32)
    for first in range(start, stop, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        pixel = tl.where(pixel < stop, pixel, pixels)
        s, place, there = _tile(x, time, residual, skip, pixel, image, pixels, group, C, OWN, ROW, WIDTH, LANES)
        y = (s - mean[None, :, None]) * w[None, :, :] + b[None, :, :]
        if SILU:
            y = y / (1 + tl.exp(-y))
        tl.store(out + place, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _group_norm_single(
    x, time, residual, skip, weight, bias, out, total, stored_bias, pixels, eps,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    image = tl.program_id(1)
    mean, squares = _moments(
        x, time, residual, skip, total, stored_bias, 0, pixels, image, pixels, group, C, OWN, ROW, WIDTH, LANES, PIXELS,
    )  # fmt: skip
    scale = 1 / tl.sqrt(squares / (pixels * WIDTH) + eps)
    _normalize(
        x, time, residual, skip, weight, bias, out, mean, scale, 0, pixels, image, pixels, group,
        C, OWN, ROW, WIDTH, LANES, PIXELS, SILU,
    )  # fmt: skip


@triton.jit
def _group_norm_plugin(
    x, weight, bias, pixels, out,
    C: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr,
    SILU: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """`_group_norm_single` with the arguments of a TensorRT plugin: input tensors, integers, output tensors."""
    group = tl.program_id(0) + tl.arange(0, 1)
    image = tl.program_id(1)
    mean, squares = _moments(
        x, None, None, None, None, None, 0, pixels, image, pixels, group, C, C, 0, WIDTH, LANES, PIXELS,
    )  # fmt: skip
    scale = 1 / tl.sqrt(squares / (pixels * WIDTH) + EPS)
    _normalize(
        x, None, None, None, weight, bias, out, mean, scale, 0, pixels, image, pixels, group,
        C, C, 0, WIDTH, LANES, PIXELS, SILU,
    )  # fmt: skip


@triton.jit
def _group_norm_moments(
    x, time, residual, skip, total, stored_bias, moments, pixels, part_pixels,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    part, image = tl.program_id(0), tl.program_id(2)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    start = part * part_pixels
    stop = tl.minimum(start + part_pixels, pixels)
    mean, squares = _moments(
        x, time, residual, skip, total, stored_bias, start, stop, image, pixels, group,
        C, OWN, ROW, WIDTH, LANES, PIXELS,
    )  # fmt: skip
    place = moments + ((image * (C // WIDTH) + group) * tl.num_programs(0) + part) * 2  # [B, G, parts, 2]
    tl.store(place, mean)
    tl.store(place + 1, squares)


@triton.jit
def _group_norm_parts(
    x, time, residual, skip, weight, bias, out, moments, pixels, part_pixels, eps,
    C: tl.constexpr, OWN: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    part, image = tl.program_id(0), tl.program_id(2)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    each = tl.arange(0, PARTS)
    there = (each < tl.num_programs(0))[None, :]
    place = moments + ((image * (C // WIDTH) + group)[:, None] * tl.num_programs(0) + each[None, :]) * 2
    means = tl.load(place, mask=there, other=0)  # [G, parts]
    squares = tl.load(place + 1, mask=there, other=0)
    share = tl.minimum(tl.maximum(pixels - each * part_pixels, 0), part_pixels).to(tl.float32)[None, :] / pixels
    mean = tl.sum(means * share, axis=1)
    off = means - mean[:, None]
    variance = tl.sum(squares, axis=1) / (pixels * WIDTH) + tl.sum(off * off * share, axis=1)
    start = part * part_pixels
    stop = tl.minimum(start + part_pixels, pixels)
    _normalize(
        x, time, residual, skip, weight, bias, out, mean, 1 / tl.sqrt(variance + eps), start, stop, image, pixels,
        group, C, OWN, ROW, WIDTH, LANES, PIXELS, SILU,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Addends:
    """What is added to x before the norm, and whether the sum is stored.

    Attributes:
        time: [B, C], added at every pixel, or [C], also in every image.
        residual: of x's shape.
        skip: [B, D, H, W], more channels behind those of x.
        stored_bias: [C + D], added to the stored sum only, not to what is normalized.
        stores: whether the sum is stored. True with a residual, a skip or a bias of the stored sum.
    """

    time: Tensor | None = None
    residual: Tensor | None = None
    skip: Tensor | None = None
    stored_bias: Tensor | None = None
    stores: bool = False

    @property
    def needs_total(self) -> bool:
        """Whether the sum is stored."""
        return self.stores or any(t is not None for t in (self.residual, self.skip, self.stored_bias))


NOTHING = Addends()


def group_norm_silu(x: Tensor, norm: GroupNorm, addends: Addends = NOTHING) -> tuple[Tensor, Tensor | None]:
    """Return y, and s with its bias if it is stored.  # [B, C, H, W] channels last -> [B, C + D, H, W], the same

    Raises `ValueError` if the shapes or the memory layouts do not match.
    """
    sequence = launches(x, norm, addends)
    for launch in sequence[:-1]:
        launch()
    return sequence[-1].run(), sequence[0].tensor("total") if addends.needs_total else None


def launches(x: Tensor, norm: GroupNorm, addends: Addends = NOTHING) -> Sequence[Launch]:
    """Return one launch for small groups, two for split ones. The last contains `out`, the first `total`."""
    _check(x, norm, addends)
    time, skip = addends.time, addends.skip
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    width, pixels = channels // norm.groups, x.shape[2] * x.shape[3]
    read: Arguments = {"x": x, "time": time, "residual": addends.residual, "skip": skip, "pixels": pixels}
    total = _like(x, channels) if addends.needs_total else None
    kept: Arguments = {"total": total, "stored_bias": addends.stored_bias}
    scaled: Arguments = {"weight": norm.weight, "bias": norm.bias, "out": _like(x, channels), "eps": norm.eps}
    parts = {"C": channels, "OWN": x.shape[1], "ROW": 0 if time is None or time.ndim == 1 else x.shape[1]}
    silu = {"SILU": norm.silu}
    if pixels * width <= _SMALL:
        return [
            Launch(
                kernel=_group_norm_single,
                grid=(norm.groups, len(x)),
                arguments={**read, **scaled, **kept},
                constants={**parts, **_shape(x, width, 1), **silu},
                warps=4,
            )
        ]
    side = 1  # groups of a program: one narrow group would only use a part of each cache line
    while side * width < _WIDE and norm.groups % (2 * side) == 0:
        side *= 2
    shape = {**parts, **_shape(x, width, side)}
    part = triton.next_power_of_2(max(4 * shape["PIXELS"], triton.cdiv(pixels, _MAX_PARTS)))
    grid = (triton.cdiv(pixels, part), norm.groups // side, len(x))
    moments = torch.empty(len(x), norm.groups, grid[0], 2, dtype=torch.float32, device=x.device)
    split: Arguments = {**read, "moments": moments, "part_pixels": part}
    merged = {**shape, **silu, "PARTS": triton.next_power_of_2(grid[0])}
    second = split
    if total is not None and addends.stored_bias is None:  # one tensor to read in place of its addends
        second = {**split, "x": total, "time": None, "residual": None, "skip": None}
        merged |= {"OWN": channels, "ROW": 0}
    return [
        Launch(kernel=_group_norm_moments, grid=grid, arguments={**split, **kept}, constants=shape, warps=4),
        Launch(kernel=_group_norm_parts, grid=grid, arguments={**second, **scaled}, constants=merged, warps=4),
    ]


def plugin_launch(x: Tensor, norm: GroupNorm) -> Launch:
    """Return the single launch of this layer as a TensorRT plugin. Its arguments contain `out`."""
    _check(x, norm, NOTHING)
    shape = {"C": x.shape[1], **_shape(x, x.shape[1] // norm.groups, 1)}
    del shape["GROUPS"]
    inputs: Arguments = {"x": x, "weight": norm.weight, "bias": norm.bias, "pixels": x.shape[2] * x.shape[3]}
    return Launch(
        kernel=_group_norm_plugin,
        grid=(norm.groups, len(x)),
        arguments={**inputs, "out": torch.empty_like(x)},
        constants={**shape, "SILU": norm.silu, "EPS": norm.eps},
        warps=4,
    )


def _shape(x: Tensor, width: int, side: int) -> dict[str, int]:
    lanes = triton.next_power_of_2(width)
    tile = max(1, min(triton.next_power_of_2(x.shape[2] * x.shape[3]), _TILE // (lanes * side)))
    return {"WIDTH": width, "LANES": lanes, "GROUPS": side, "PIXELS": tile}


def _like(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)


def _check(x: Tensor, norm: GroupNorm, addends: Addends) -> None:
    time, residual, skip, bias = addends.time, addends.residual, addends.skip, addends.stored_bias
    tensors = [x, norm.weight, norm.bias, time, residual, skip, bias]
    require(x.ndim == 4, "x [B, C, H, W]", tensors)
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    require(channels % norm.groups == 0, f"a multiple of {norm.groups} channels", tensors)
    for tensor in (x, residual, skip):
        last = tensor is None or tensor.is_contiguous(memory_format=torch.channels_last)
        require(last, "x, residual and skip in channels last", tensors)
    require(residual is None or residual.shape == x.shape, "a residual of x's shape", tensors)
    behind = skip is None or (skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:])
    require(behind, "a skip of x's images and pixels", tensors)
    each = all(t is None or (t.shape == (channels,) and t.is_contiguous()) for t in (norm.weight, norm.bias, bias))
    require(each, "a weight and a bias for each channel", tensors)
    match = time is None or (time.shape in (x.shape[:2], x.shape[1:2]) and time.is_contiguous())
    require(match, "time [B, C] or [C], contiguous", tensors)


def reference(x: Tensor, norm: GroupNorm, addends: Addends = NOTHING) -> tuple[Tensor, Tensor | None]:
    """Compute the same with torch in float32."""
    time, residual, skip, bias = addends.time, addends.residual, addends.skip, addends.stored_bias
    s = wide(x)
    s = s if time is None else s + wide(time)[..., None, None]
    s = s if residual is None else s + wide(residual)
    s = s if skip is None else torch.cat([s, wide(skip)], dim=1)
    y = functional.group_norm(s, norm.groups, wide(norm.weight), wide(norm.bias), norm.eps)
    total = s if bias is None else s + wide(bias)[:, None, None]
    return functional.silu(y) if norm.silu else y, total if addends.needs_total else None
