"""What steers a whole picture on a device is what steers the pipeline's, for SDXL: two encoders, pooled text, sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calotype.conditioning import condition, tokenizers_of
from calotype.errors import BackendError
from calotype.export import prepare
from calotype.modules import load_module
from calotype.request import Request, resolve
from calotype.sampler_cache import sampler_for
from calotype.whole import WholePicture, inputs_of


@pytest.mark.parametrize("said", [{}, {"negative_prompt": "a blue ring"}, {"guidance_scale": 1.0}], ids=str)
def test_it_is_steered_as_the_pipeline_is(said, sdxl_folder):
    plan = prepare(sdxl_folder, forms=())
    modules = {name: load_module(name, c.artefact("diffusers").path) for name, c in plan.components.items()}
    job = resolve(Request(prompt=["a red circle", "a star"], steps=2, width=96, height=64, **said), plan)
    tokenizers = tokenizers_of(plan)
    _, matrix = sampler_for(job.scheduler, plan.scheduler, job.steps, plan.samplers)
    inputs = {n: torch.from_numpy(a) for n, a in inputs_of(plan, tokenizers, matrix, job).items()}

    def encoder(name):
        names = [b.name for b in plan.components[name].outputs]
        return lambda input_ids: dict(
            zip(names, (t.numpy() for t in modules[name](torch.from_numpy(input_ids))), strict=True)
        )

    wanted, _ = condition(plan, tokenizers, encoder, job)
    with torch.inference_mode():
        got = WholePicture(plan, modules).steering(inputs)
    assert set(got) == set(wanted.arrays) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    for name, array in wanted.arrays.items():
        np.testing.assert_allclose(got[name].numpy(), array, rtol=1e-5, atol=1e-6)


def test_control_nets_are_refused(fake):
    plan = replace(fake.plan, components={**fake.plan.components, "controlnet": fake.plan.components["unet"]})
    with pytest.raises(BackendError, match="without ControlNets"):
        WholePicture(plan, {})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"prompt": "a red circle " * 60}, "one chunk of tokens"),
        ({"prompt": "a (red:1.3) circle"}, "without weights"),
        ({"prompt": "x", "guidance_rescale": 0.7}, "without guidance_rescale"),
        ({"prompt": "x", "clip_skip": 1}, "without clip_skip"),
        ({"prompt": "x", "image": np.zeros((128, 128, 3), np.uint8)}, "without a picture to set out from"),
    ],
)
def test_what_it_has_no_part_for_is_refused(fake, said, told):
    """Rather that than another picture than the pipeline's."""
    plan = fake.plan
    job = resolve(Request(steps=2, **said), plan)
    _, matrix = sampler_for(None, plan.scheduler, 2, plan.samplers)
    with pytest.raises(BackendError, match=told):
        inputs_of(plan, tokenizers_of(plan), matrix, job)
