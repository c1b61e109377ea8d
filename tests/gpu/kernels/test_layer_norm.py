"""Layer normalization compared with torch's."""

import pytest
import torch

from calotype.kernels.layer_norm import layer_norm, reference
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [..., C], why
SHAPES = [
    ((1, 1), "one number, whose variance is zero"),
    ((2, 3, 40), "forty channels: no power of two, and rows that do not fill a block"),
    ((17, 320), "as wide as SD 1.5's first level, one row more than a block of rows"),
    ((3, 1280), "as wide as its last"),
    ((2, 5000), "wider than a tile: one row a program, more warps"),
]


@pytest.mark.parametrize(("shape", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("added", ["", "residual", "residual shift bias"])
def test_it_equals_torch(shape, why, added, dtype):
    x, weight, bias = (randn(*s, dtype=dtype) for s in (shape, shape[-1:], shape[-1:]))
    additions = {
        "residual": randn(*shape, dtype=dtype) if "residual" in added else None,
        "shift": randn(shape[-1], dtype=dtype) if "shift" in added else None,
        "stored_bias": randn(shape[-1], dtype=dtype) if "bias" in added else None,
    }
    got, total = layer_norm(x, weight, bias, **additions)
    wide, wide_weight, wide_bias, *more = widened(dtype, x, weight, bias, *additions.values())
    expected, expected_total = reference(wide, wide_weight, wide_bias, **dict(zip(additions, more, strict=True)))
    summed = x
    for each in (additions["residual"], additions["shift"]):
        summed = summed if each is None else summed + each
    assert_no_worse_than_torch(got, torch.nn.functional.layer_norm(summed, shape[-1:], weight, bias), expected)
    if "residual" in added or "bias" in added:
        stored = summed if additions["stored_bias"] is None else summed + additions["stored_bias"]
        assert_no_worse_than_torch(total, stored, expected_total)
    else:
        assert total is None


def test_mismatched_tensors_raise():
    with pytest.raises(ValueError, match="one shape"):
        layer_norm(randn(4, 6).T, randn(4), randn(4))
    with pytest.raises(ValueError, match="for each channel"):
        layer_norm(randn(4, 6), randn(5), randn(6))
    with pytest.raises(ValueError, match="for each channel"):
        layer_norm(randn(4, 6), randn(6), randn(6), shift=randn(5))
