"""Pixels to bytes: equal to the reference and to the engine's numpy code."""

import pytest
import torch

from calotype.images.png import to_uint8 as by_numpy
from calotype.kernels.to_uint8 import reference, to_uint8
from tests.helpers.kernels.checks import randn

# [B, C, H, W], why
SHAPES = [
    ((1, 3, 1, 1), "one pixel"),
    ((2, 3, 37, 29), "1073 pixels: two blocks and a remainder"),
    ((1, 4, 8, 130), "with an alpha channel"),
]


@pytest.mark.parametrize(("shape", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["by channel", "by pixel"])
def test_it_equals_the_reference(shape, why, order, dtype):
    x = randn(*shape, dtype=dtype).contiguous(memory_format=order)
    got = to_uint8(x)
    assert torch.equal(got, reference(x))
    assert got.is_contiguous()
    if dtype == torch.float32:
        assert (got.cpu().numpy() == by_numpy(x.cpu().numpy())).all()


def test_halves_round_to_even_and_outliers_are_clamped(device):
    outside = [300, -7, float("inf"), float("-inf"), float("nan")]
    levels = torch.tensor([0.5, 1.5, 2.5, 254.5, 0.49999, *outside], device=device)
    x = (levels / 255 * 2 - 1).reshape(1, 1, 1, -1)
    got = to_uint8(x)
    assert torch.equal(got, reference(x))
    assert got.flatten().tolist()[4:] == [0, 255, 0, 255, 0, 0]


def test_a_view_is_read_by_its_strides():
    x = randn(2, 3, 12, 10)[:, :, 1:9, 2:9]
    assert torch.equal(to_uint8(x), reference(x))


def test_mismatched_tensors_raise():
    with pytest.raises(ValueError, match="channels"):
        to_uint8(randn(1, 5, 2, 2))
