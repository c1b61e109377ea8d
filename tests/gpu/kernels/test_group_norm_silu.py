"""Group normalization compared with torch's, single and split, for shapes with remainders everywhere."""

from dataclasses import replace

import pytest
import torch

from calotype.kernels.group_norm_silu import GroupNorm, group_norm_silu, launches, plugin_launch, reference
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [B, C, H, W], groups, launches, why
SHAPES = [
    ((1, 64, 1, 1), 32, 1, "a group of two numbers, the minimum for torch"),
    ((2, 40, 7, 5), 4, 1, "ten channels a group, as in SD 1.5: no power of two; 35 pixels: no multiple of a tile"),
    ((3, 24, 9, 3), 8, 1, "three channels a group, three images"),
    ((1, 80, 47, 43), 8, 2, "split, with adjacent groups, and a shorter last part"),
    ((2, 160, 9, 33), 2, 2, "split, eighty channels a group, as in SDXL's widest: one group fills a cache line"),
    ((1, 16, 130, 127), 16, 2, "split, one channel a group"),
]


def images(*shape, dtype):
    return randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels, groups, dtype) -> GroupNorm:
    return GroupNorm(weight=randn(channels, dtype=dtype), bias=randn(channels, dtype=dtype), groups=groups)


def by_torch(x, norm, time=None, residual=None):
    """As in diffusers: every step rounds."""
    s = x if time is None else x + time[:, :, None, None]
    s = s if residual is None else s + residual
    y = torch.nn.functional.group_norm(s, norm.groups, norm.weight, norm.bias, norm.eps)
    return torch.nn.functional.silu(y) if norm.silu else y


@pytest.mark.parametrize(("shape", "groups", "count", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
def test_without_additions(shape, groups, count, why, dtype):
    x, norm = images(*shape, dtype=dtype), norm_of(shape[1], groups, dtype)
    assert len(launches(x, norm)) == count
    got, total = group_norm_silu(x, norm)
    assert total is None
    weight, bias, wide = widened(dtype, norm.weight, norm.bias, x)
    assert_no_worse_than_torch(got, by_torch(x, norm), reference(wide, replace(norm, weight=weight, bias=bias))[0])
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("shape", "groups"), [((2, 40, 7, 5), 4), ((1, 80, 47, 43), 8)], ids=["single", "split"])
@pytest.mark.parametrize("added", ["time", "residual", "time and residual"])
def test_with_additions_before_it(shape, groups, added, dtype):
    x, norm = images(*shape, dtype=dtype), norm_of(shape[1], groups, dtype)
    additions = {
        "time": randn(*shape[:2], dtype=dtype) if "time" in added else None,
        "residual": images(*shape, dtype=dtype) if "residual" in added else None,
    }
    got, total = group_norm_silu(x, norm, **additions)
    weight, bias, wide, *more = widened(dtype, norm.weight, norm.bias, x, *additions.values())
    wide_norm = replace(norm, weight=weight, bias=bias)
    expected, expected_total = reference(wide, wide_norm, **dict(zip(additions, more, strict=True)))
    assert_no_worse_than_torch(got, by_torch(x, norm, **additions), expected)
    if "residual" in added:
        summed = x if additions["time"] is None else x + additions["time"][:, :, None, None]
        assert_no_worse_than_torch(total, summed + additions["residual"], expected_total)


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
    with pytest.raises(ValueError, match=r"time \[B, C\]"):
        group_norm_silu(images(1, 8, 2, 2, dtype=torch.float32), norm, time=randn(2, 8))


def test_the_tensorrt_plugin_is_equal(dtype):
    """Five arguments in TensorRT's order, the same numbers."""
    x = (randn(2, 24, 5, 7) + 3).to(dtype).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(weight=randn(24, dtype=dtype), bias=randn(24, dtype=dtype), groups=4)
    launch = plugin_launch(x, norm)
    launch()
    assert list(launch.arguments) == ["x", "weight", "bias", "pixels", "out"]
    assert torch.equal(launch.arguments["out"], group_norm_silu(x, norm)[0])
