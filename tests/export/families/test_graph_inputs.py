"""The conditioning inside the CUDA graph equals the pipeline's, for SDXL: two encoders, pooled text, sizes."""

import numpy as np
import pytest
import torch

from calotype.backends.torch.cuda import Module
from calotype.backends.torch.modules import load_module
from calotype.export import prepare
from calotype.graph.inputs import arrays_of, graph_unsupported_reason, options_of
from calotype.graph.pipeline import GraphPipeline
from calotype.request.prompts import tokenizers_of
from calotype.request.resolved import resolve
from calotype.sampling.cache import sampler_for
from calotype.stages.denoise_inputs import prepare as prepare_inputs
from calotype.stages.prompt_encoder import PromptEncoder
from calotype.stages.vae import UNTILED, Codec
from calotype.system.trace import Stopwatch


@pytest.mark.parametrize(
    "options",
    [{}, {"negative_prompt": "a blue ring"}, {"guidance_scale": 1.0}, {"clip_skip": 1}],
    ids=str,
)
def test_graph_conditioning_matches_the_pipeline(options, sdxl_folder):
    plan = prepare(sdxl_folder, forms=())
    modules = {name: load_module(name, c.artifact("diffusers").path) for name, c in plan.components.items()}
    arguments = {"steps": 2, "width": 96, "height": 64, **options}
    request = resolve(["a red circle", "a (star:1.2)"], arguments, plan, tokenizers_of(plan))
    _, matrix = sampler_for(request.scheduler, plan.scheduler, request.steps, plan.samplers)

    def encoder(name):
        names = [b.name for b in plan.components[name].outputs]
        return lambda input_ids: dict(
            zip(names, (t.numpy() for t in modules[name](torch.from_numpy(input_ids))), strict=True)
        )

    batch = prepare_inputs(plan, request, Codec(plan, encoder), Stopwatch())
    inputs = {name: torch.from_numpy(array) for name, array in arrays_of(request, matrix, batch).items()}
    expected = PromptEncoder(plan, encoder)(request) | batch.micro_conditioning
    outputs = {name: [b.name for b in component.outputs] for name, component in plan.components.items()}
    networks = {name: Module(module, torch.float32, outputs[name]) for name, module in modules.items()}
    with torch.inference_mode():
        got = GraphPipeline(plan, networks).conditioning(inputs, options_of(request))
    assert set(got) == set(expected) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    for name, array in expected.items():
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
    request = resolve("x", {"steps": 2, **options}, fake.plan, tokenizers_of(fake.plan))
    _, matrix = sampler_for(None, fake.plan.scheduler, 2, fake.plan.samplers)
    assert keyword in graph_unsupported_reason(fake.plan, request, matrix, UNTILED)
