"""The conditioning inside the CUDA graph equals the pipeline's, for SDXL: two encoders, pooled text, sizes."""

import numpy as np
import pytest
import torch

from calotype.backends.torch.cuda import Module
from calotype.backends.torch.modules import load_module
from calotype.export import prepare
from calotype.graph.inputs import GraphInputs, graph_unsupported_reason, inputs_of
from calotype.graph.pipeline import GraphPipeline
from calotype.request.request import Request, resolve
from calotype.sampling.cache import sampler_for
from calotype.sampling.noise import BatchNoise
from calotype.stages.conditioning import condition, tokenizers_of
from calotype.stages.initial_latents import InitialLatents


@pytest.mark.parametrize(
    "options",
    [{}, {"negative_prompt": "a blue ring"}, {"guidance_scale": 1.0}, {"clip_skip": 1}],
    ids=str,
)
def test_graph_conditioning_matches_the_pipeline(options, sdxl_folder):
    plan = prepare(sdxl_folder, forms=())
    modules = {name: load_module(name, c.artifact("diffusers").path) for name, c in plan.components.items()}
    job = resolve(Request(prompt=["a red circle", "a (star:1.2)"], steps=2, width=96, height=64, **options), plan)
    tokenizers = tokenizers_of(plan)
    _, matrix = sampler_for(job.scheduler, plan.scheduler, job.steps, plan.samplers)
    draw = BatchNoise(job.seeds, (4, 8, 12))
    ready = InitialLatents(noise=draw(), original=None, extra_channels=None)
    arrays, _ = inputs_of(plan, tokenizers, GraphInputs(job=job, sampler=matrix, ready=ready, draw=draw))
    inputs = {n: torch.from_numpy(a) for n, a in arrays.items()}

    def encoder(name):
        names = [b.name for b in plan.components[name].outputs]
        return lambda input_ids: dict(
            zip(names, (t.numpy() for t in modules[name](torch.from_numpy(input_ids))), strict=True)
        )

    expected, _ = condition(plan, tokenizers, encoder, job)
    outputs = {name: [b.name for b in component.outputs] for name, component in plan.components.items()}
    networks = {name: Module(module, torch.float32, outputs[name]) for name, module in modules.items()}
    with torch.inference_mode():
        got = GraphPipeline(plan, networks).conditioning(inputs)
    assert set(got) == set(expected.arrays) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(got[name].numpy(), array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "keyword"),
    [
        ({"output_type": "np"}, "output_type is np"),
        ({"cache_interval": 2}, "cache_interval"),
        ({"guidance_interval": (0, 0.5)}, "guidance_interval"),
    ],
)
def test_unsupported_requests_have_a_reason(fake, options, keyword):
    job = resolve(Request(prompt="x", steps=2, **options), fake.plan)
    _, matrix = sampler_for(None, fake.plan.scheduler, 2, fake.plan.samplers)
    assert keyword in graph_unsupported_reason(fake.plan, job, matrix)
