"""Noise equals torch's, number by number."""

import numpy as np
import pytest
import torch

from calotype.errors import InputError
from calotype.sampling.noise import MAX_SEED, BatchNoise


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40 + 7, MAX_SEED])
@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 64, 64), (17,), (3, 5, 7), (4, 9, 9), (16,)], ids=str)
def test_a_stream_equals_torch_randn(seed, shape):
    ours, generator = BatchNoise((seed,), shape), torch.Generator().manual_seed(seed)
    for _ in range(3):  # draws follow one another; a count that sixteen does not divide redraws its last block
        np.testing.assert_allclose(ours()[0], torch.randn(shape, generator=generator).numpy(), atol=2e-6)


def test_the_noise_of_an_image_only_depends_on_its_seed():
    batch = BatchNoise((3, 9), (4, 8, 8))
    alone = BatchNoise((9,), (4, 8, 8))
    for _ in range(3):
        np.testing.assert_array_equal(batch()[1:], alone())


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, "7", True, None])
def test_wrong_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        BatchNoise((seed,), (4, 8, 8))
