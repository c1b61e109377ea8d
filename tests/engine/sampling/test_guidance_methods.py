"""Guidance methods, compared with diffusers' guiders."""

import numpy as np
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from calotype.sampling.guidance_methods import ProjectedGuidance, zero_star

SHAPE = (2, 4, 8, 8)  # [B, C, H, W]


def outputs(seed):
    rng = np.random.default_rng(seed)
    uncond = rng.standard_normal(SHAPE).astype(np.float32)
    return uncond, (uncond + 0.3 * rng.standard_normal(SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    ("eta", "momentum", "rescale"), [(0.0, -0.5, 15.0), (1.0, 0.0, 0.0), (0.3, 0.4, 2.0), (0.0, -0.75, 0.0)]
)
def test_projected_guidance_matches_diffusers(eta, momentum, rescale):
    ours = ProjectedGuidance(eta=eta, momentum=momentum, rescale=rescale)
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=6.0,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=rescale,
        eta=eta,
    )
    for step in range(3):
        uncond, cond = outputs(step)
        theirs._step, theirs._num_inference_steps = step, 3
        if step == 0:
            theirs.momentum_buffer = MomentumBuffer(momentum)
        expected = theirs.forward(torch.from_numpy(cond), torch.from_numpy(uncond)).pred.numpy()
        np.testing.assert_allclose(ours(uncond, cond, 6.0), expected, rtol=1e-5, atol=1e-5)


def test_zero_star_matches_diffusers():
    theirs = ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=0)
    uncond, cond = outputs(5)
    theirs._step, theirs._num_inference_steps = 1, 3
    expected = theirs.forward(torch.from_numpy(cond), torch.from_numpy(uncond)).pred.numpy()
    np.testing.assert_allclose(zero_star(uncond, cond, 6.0), expected, rtol=1e-5, atol=1e-5)
