"""Kernels with an fp8 output, compared with the same kernels in float32 followed by torch's rounding."""

import pytest
import torch

from calotype.kernels.geglu import geglu
from calotype.kernels.layer_norm import layer_norm
from calotype.kernels.quantize import MAX_VALUE, reference
from tests.helpers.kernels.checks import randn


@pytest.fixture
def fp8_scale(device) -> torch.Tensor:
    """A scale for which some numbers are too large."""
    return torch.full((1,), 0.004, device=device)


def same(got: torch.Tensor, exact: torch.Tensor, fp8_scale: torch.Tensor) -> None:
    """Check equality, except for numbers in the middle between two levels, within float32's precision."""
    expected = reference(exact, fp8_scale)
    assert got.dtype == torch.float8_e4m3fn
    assert got.shape == expected.shape
    apart = (got.float() - expected.float()).abs()
    assert (apart <= expected.float().abs() / 8 + 2**-9).all()
    assert (apart > 0).float().mean() <= 2e-3
    assert got.float().abs().max() == MAX_VALUE  # the clamp


def test_layer_norm_quantizes_and_keeps_the_sum(fp8_scale):
    x, residual, weight, bias = randn(17, 40), randn(17, 40), randn(40), randn(40)
    exact, summed = layer_norm(x, weight, bias, residual=residual)
    got, total = layer_norm(x, weight, bias, residual=residual, fp8_scale=fp8_scale)
    same(got, exact, fp8_scale)
    assert torch.equal(total, summed)


def test_geglu_quantizes(fp8_scale):
    x = randn(9, 74) * 2
    same(geglu(x, fp8_scale=fp8_scale), geglu(x), fp8_scale)


def test_halves_round_to_even_and_large_values_are_clamped(device):
    """With a norm that changes nothing: rows of plus and minus one, scaled by its weights."""
    levels = torch.tensor([0.5, 1.5, 2.5, -0.5, -3.5, 126.5, 500.0, -500.0], device=device)
    x = torch.tensor([[1.0, -1.0] * 4], device=device)
    fp8_scale = torch.ones(1, device=device)
    got, _ = layer_norm(x, levels * x[0].sign(), torch.zeros(8, device=device), eps=1e-12, fp8_scale=fp8_scale)
    assert got[0].float().tolist() == reference(levels, fp8_scale).float().tolist()


def test_an_invalid_scale_raises():
    for scale in (torch.ones(2), torch.ones(1, dtype=torch.float16)):
        with pytest.raises(ValueError, match="one scale"):
            geglu(randn(1, 2), fp8_scale=scale)
