"""Group normalization compared with torch's, single and split, for shapes with remainders everywhere."""

from dataclasses import replace

import pytest
import torch
from triton import knobs

from calotype.kernels import group_norm_silu as group_norm
from calotype.kernels.group_norm_silu import (
    NOTHING,
    Addends,
    GroupNorm,
    group_norm_silu,
    launches,
    plugin_launch,
    reference,
)
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [B, C, H, W], groups, launches, why. In the interpreter, smaller limits split smaller images.
SHAPES = [
    ((1, 64, 1, 1), 32, 1, "a group of two numbers, the minimum for torch"),
    ((2, 40, 7, 5), 4, 1, "ten channels a group, as in SD 1.5: no power of two; 35 pixels: no multiple of a tile"),
    ((3, 24, 9, 3), 8, 1, "three channels a group, three images"),
    ((1, 80, 47, 43), 8, 2, "split, with adjacent groups, and a shorter last part"),
    ((2, 160, 9, 33), 2, 2, "split, eighty channels a group, as in SDXL's widest: one group fills a cache line"),
    ((1, 16, 130, 127), 16, 2, "split, one channel a group"),
]
if knobs.runtime.interpret:
    SHAPES[3:] = [((b, c, 9, 13), *rest) for (b, c, *_), *rest in SHAPES[3:]]


def images(*shape, dtype):
    return randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels, groups, dtype) -> GroupNorm:
    return GroupNorm(weight=randn(channels, dtype=dtype), bias=randn(channels, dtype=dtype), groups=groups)


def by_torch(x, norm, addends=NOTHING):
    """As in diffusers: every step rounds. Return the norm and the sum."""
    s = x if addends.time is None else x + addends.time[..., None, None]
    s = s if addends.residual is None else s + addends.residual
    s = s if addends.skip is None else torch.cat([s, addends.skip], dim=1)
    y = torch.nn.functional.group_norm(s, norm.groups, norm.weight, norm.bias, norm.eps)
    total = s if addends.stored_bias is None else s + addends.stored_bias[:, None, None]
    return torch.nn.functional.silu(y) if norm.silu else y, total


@pytest.mark.parametrize(("shape", "groups", "count", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
def test_without_additions(shape, groups, count, why, dtype, monkeypatch):
    if knobs.runtime.interpret and count == 2:
        monkeypatch.setattr(group_norm, "_SMALL", 64)
        monkeypatch.setattr(group_norm, "_TILE", 256)
    x, norm = images(*shape, dtype=dtype), norm_of(shape[1], groups, dtype)
    assert len(launches(x, norm)) == count
    got, total = group_norm_silu(x, norm)
    assert total is None
    weight, bias, wide = widened(dtype, norm.weight, norm.bias, x)
    assert_no_worse_than_torch(got, by_torch(x, norm)[0], reference(wide, replace(norm, weight=weight, bias=bias))[0])
    assert got.is_contiguous(memory_format=torch.channels_last)


# The names of what is added, and whether the sum is stored without one of them.
ADDITIONS = ["time", "row", "time residual", "skip", "row residual skip bias", "stored"]


@pytest.mark.parametrize("split", [False, True], ids=["single", "split"])
@pytest.mark.parametrize("added", ADDITIONS)
def test_with_additions_before_it(split, added, dtype, monkeypatch):
    """A skip makes a group that begins in x and ends in it. Smaller limits split a small image."""
    if split:
        monkeypatch.setattr(group_norm, "_SMALL", 64)
        monkeypatch.setattr(group_norm, "_TILE", 256)
    shape, groups, names, behind = (2, 40, 7, 5), 4, added.split(), 20
    channels = shape[1] + (behind if "skip" in names else 0)
    x, norm = images(*shape, dtype=dtype), norm_of(channels, groups, dtype)
    times = {"time": shape[:2], "row": shape[1:2]}
    additions = {
        "time": next((randn(*times[n], dtype=dtype) for n in times if n in names), None),
        "residual": images(*shape, dtype=dtype) if "residual" in names else None,
        "skip": images(shape[0], behind, *shape[2:], dtype=dtype) if "skip" in names else None,
        "stored_bias": randn(channels, dtype=dtype) if "bias" in names else None,
    }
    addends = Addends(**additions, stores="stored" in names)
    assert len(launches(x, norm, addends)) == 1 + split
    got, total = group_norm_silu(x, norm, addends)
    weight, bias, wide, *more = widened(dtype, norm.weight, norm.bias, x, *additions.values())
    expected, expected_total = reference(
        wide,
        replace(norm, weight=weight, bias=bias),
        Addends(**dict(zip(additions, more, strict=True)), stores="stored" in names),
    )
    rounded, rounded_total = by_torch(x, norm, Addends(**additions))
    assert_no_worse_than_torch(got, rounded, expected)
    assert (total is None) == (added in ("time", "row"))
    if total is not None:
        assert_no_worse_than_torch(total, rounded_total, expected_total)
        assert total.is_contiguous(memory_format=torch.channels_last)
        assert total.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(1, 8, 6, 6), (1, 8, 90, 60)], ids=["single", "split"])
def test_a_mean_far_from_zero_loses_no_digits(shape):
    x = (images(*shape, dtype=torch.float32) + 4096).contiguous(memory_format=torch.channels_last)
    norm = replace(norm_of(8, 2, torch.float32), silu=False)
    wide = replace(norm, weight=norm.weight.double(), bias=norm.bias.double())
    expected, _ = reference(x.double(), wide)
    torch.testing.assert_close(group_norm_silu(x, norm)[0], expected.float(), rtol=1e-3, atol=1e-3)


def test_mismatched_tensors_raise():
    norm = norm_of(8, 2, torch.float32)
    with pytest.raises(ValueError, match="channels last"):
        group_norm_silu(randn(2, 8, 4, 4), norm)
    with pytest.raises(ValueError, match="multiple of 3"):
        group_norm_silu(images(1, 8, 2, 2, dtype=torch.float32), replace(norm, groups=3))
    x = images(1, 8, 2, 2, dtype=torch.float32)
    for wrong, expected in (
        ({"time": randn(2, 8)}, r"time \[B, C\]"),
        ({"residual": images(1, 4, 2, 2, dtype=torch.float32)}, "residual"),
        ({"skip": images(1, 8, 2, 3, dtype=torch.float32)}, "skip"),
        ({"stored_bias": randn(7)}, "for each channel"),
    ):
        with pytest.raises(ValueError, match=expected):
            group_norm_silu(x, norm, Addends(**wrong))


def test_the_tensorrt_plugin_is_equal(dtype):
    """Five arguments in TensorRT's order, the same numbers."""
    x = (randn(2, 24, 5, 7) + 3).to(dtype).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(weight=randn(24, dtype=dtype), bias=randn(24, dtype=dtype), groups=4)
    launch = plugin_launch(x, norm)
    launch()
    assert list(launch.arguments) == ["x", "weight", "bias", "pixels", "out"]
    assert torch.equal(launch.arguments["out"], group_norm_silu(x, norm)[0])
