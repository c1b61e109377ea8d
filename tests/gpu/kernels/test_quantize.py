"""Kernels with an eight-bit output, compared with the same kernels in float32 followed by torch's rounding."""

import pytest
import torch

from calotype.kernels.geglu import geglu
from calotype.kernels.group_norm_silu import GroupNorm, group_norm_silu
from calotype.kernels.layer_norm import layer_norm
from calotype.kernels.quantize import Scale, reference

KINDS = [torch.int8, torch.float8_e4m3fn]


@pytest.fixture(params=KINDS, ids=["int8", "fp8"])
def quantized(request, device) -> Scale:
    """A scale for which some numbers are too large."""
    return Scale(
        scale=torch.full((1,), 0.017 if request.param == torch.int8 else 0.004, device=device), dtype=request.param
    )


def same(got: torch.Tensor, exact: torch.Tensor, quantized: Scale) -> None:
    """Check equality, except for numbers in the middle between two levels, within float32's precision."""
    expected = reference(exact, quantized)
    assert got.dtype == quantized.dtype
    assert got.shape == expected.shape
    apart = (got.float() - expected.float()).abs()
    step = expected.float().abs() / 8 + 2**-9 if quantized.dtype == torch.float8_e4m3fn else torch.ones_like(apart)
    assert (apart <= step).all()
    assert (apart > 0).float().mean() <= 2e-3
    assert got.float().abs().max() == (127 if quantized.dtype == torch.int8 else 448)  # the clamp


def test_group_norm_silu_quantizes(quantized, randn, device):
    """For a group of one program, and for one that is split over the pixels."""
    for shape, groups in (((2, 24, 5, 7), 4), ((1, 8, 72, 64), 2)):
        x = (randn(*shape) * 3).contiguous(memory_format=torch.channels_last)
        weight, bias = randn(shape[1]), randn(shape[1])
        plain = GroupNorm(weight=weight, bias=bias, groups=groups)
        exact, _ = group_norm_silu(x, plain)
        norm = GroupNorm(weight=weight, bias=bias, groups=groups, quantized=quantized)
        got, _ = group_norm_silu(x, norm)
        assert got.is_contiguous(memory_format=torch.channels_last)
        same(got, exact, quantized)


def test_layer_norm_quantizes_and_keeps_the_sum(quantized, randn):
    x, residual, weight, bias = randn(17, 40), randn(17, 40), randn(40), randn(40)
    exact, summed = layer_norm(x, weight, bias, residual=residual)
    got, total = layer_norm(x, weight, bias, residual=residual, quantized=quantized)
    same(got, exact, quantized)
    assert torch.equal(total, summed)


def test_geglu_quantizes(quantized, randn):
    x = randn(9, 74) * 2
    same(geglu(x, quantized=quantized), geglu(x), quantized)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_round_to_even_and_large_values_are_clamped(kind, randn, device):
    """With a norm that changes nothing: rows of plus and minus one, scaled by its weights."""
    levels = torch.tensor([0.5, 1.5, 2.5, -0.5, -3.5, 126.5, 500.0, -500.0], device=device)
    x = torch.tensor([[1.0, -1.0] * 4], device=device)
    signs = x[0].sign()
    quantized = Scale(scale=torch.ones(1, device=device), dtype=kind)
    got, _ = layer_norm(x, levels * signs, torch.zeros(8, device=device), eps=1e-12, quantized=quantized)
    assert got[0].float().tolist() == reference(levels, quantized).float().tolist()


def test_an_invalid_scale_raises():
    with pytest.raises(ValueError, match="one scale"):
        Scale(scale=torch.ones(2), dtype=torch.int8)
    with pytest.raises(ValueError, match="float16"):
        Scale(scale=torch.ones(1), dtype=torch.float16)
