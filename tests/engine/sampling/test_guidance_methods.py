"""Guidance methods, compared with diffusers' guiders."""

import numpy as np
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

import calotype
from calotype.errors import InputError
from calotype.sampling.guidance_methods import ProjectedGuidance, zero_star

SHAPE = (2, 4, 8, 8)  # [B, C, H, W]


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


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
        guidance_scale=5.0,  # the paper's scale less 1
        use_original_formulation=True,
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


@pytest.mark.parametrize("method", ["apg", "cfg-zero"])
def test_a_call_follows_its_method(eager, method):
    arguments = {"steps": 3, "seed": 1, "output_type": "latent", "width": 64, "height": 64, "guidance_scale": 9.0}
    plain = eager("a red circle", **arguments).images
    assert not np.allclose(eager("a red circle", guidance_method=method, **arguments).images, plain)


def test_projection_that_changes_nothing_is_the_plain_method(eager):
    arguments = {"steps": 3, "seed": 1, "output_type": "latent", "width": 64, "height": 64, "guidance_scale": 4.0}
    projected = {"guidance_method": "apg", "apg_eta": 1.0, "apg_momentum": 0.0, "apg_rescale": 0.0}
    plain = eager("a red circle", **arguments).images
    np.testing.assert_allclose(eager("a red circle", **projected, **arguments).images, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"guidance_method": "pag"}, "guidance_method"),
        ({"guidance_method": 3}, "guidance_method"),
        ({"guidance_method": ["apg"]}, "guidance_method"),
        ({"apg_eta": 1.0}, "apg_eta"),
        ({"guidance_method": "apg", "apg_eta": -0.1}, "apg_eta"),
        ({"guidance_method": "apg", "apg_momentum": float("nan")}, "apg_momentum"),
        ({"guidance_method": "apg", "apg_rescale": "15"}, "apg_rescale"),
    ],
)
def test_odd_input(fake, arguments, argument):
    with pytest.raises(InputError) as refused:
        fake("a red circle", **arguments)
    assert refused.value.argument == argument
