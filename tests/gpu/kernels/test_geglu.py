"""GEGLU compared with torch's."""

import pytest
import torch

from calotype.kernels.geglu import geglu, reference
from tests.helpers.kernels.checks import assert_no_worse_than_torch, randn, widened

# [..., 2 D], why
SHAPES = [
    ((1, 2), "one number of each half"),
    ((2, 3, 86), "forty-three: the second half begins at an odd address"),
    ((5, 2 * 1280), "a block and a quarter"),
]


@pytest.mark.parametrize(("shape", "why"), SHAPES, ids=[s[-1] for s in SHAPES])
def test_it_equals_torch(shape, why, dtype):
    x = randn(*shape, dtype=dtype) * 2
    a, b = x.chunk(2, dim=-1)
    assert_no_worse_than_torch(geglu(x), a * torch.nn.functional.gelu(b), reference(*widened(dtype, x)))


def test_closed_and_open_gates_are_exact(device):
    x = torch.tensor([[3.0, 3.0, 0.0, -20.0, 20.0, 20.0]], device=device)
    assert geglu(x).tolist() == [[-0.0, 60.0, 0.0]]


def test_mismatched_tensors_raise():
    with pytest.raises(ValueError, match="contiguous"):
        geglu(randn(2, 5))
