"""A whole picture on the device against the pipeline's, with the demonstration model; one graph for many."""

import numpy as np
import pytest
import torch

import calotype
from calotype.conditioning import tokenizers_of
from calotype.graphs import Graphs
from calotype.modules import load_module
from calotype.request import Request, resolve
from calotype.sampler_cache import sampler_for
from calotype.whole import WholePicture, inputs_of

PROMPTS = ["a large red circle on a blue background", "a green star on a white background"]
LEVELS = 1  # of 255: the last digits of sums may round a pixel to the next one
ON_A_GPU = 8  # its convolutions round otherwise


@pytest.fixture(scope="module")
def pipe():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def whole(pipe, device):
    """The networks as they are: that kernels inside them change nothing is test_fused's."""
    folders = {name: c.artefact("diffusers").path for name, c in pipe.plan.components.items()}
    names = ("text_encoder", "unet", "vae_decoder")
    return WholePicture(pipe.plan, {name: load_module(name, folders[name]) for name in names}).to(device)


@pytest.fixture
def inputs(pipe, device):
    tokenizers = tokenizers_of(pipe.plan)

    def of(prompt, **said):
        job = resolve(Request(prompt=prompt, **said), pipe.plan)
        _, matrix = sampler_for(job.scheduler, pipe.plan.scheduler, job.steps, pipe.plan.samplers)
        arrays = inputs_of(pipe.plan, tokenizers, matrix, job)
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    return of


def apart(pixels, images) -> int:
    wanted = np.stack([np.asarray(image) for image in images]).astype(int)
    assert pixels.shape == wanted.shape
    return int(np.abs(pixels.cpu().numpy().astype(int) - wanted).max())


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (PROMPTS[0], {"scheduler": "dpm++2m-karras", "guidance_scale": 5.0, "negative_prompt": "a blue ring"}),
        (PROMPTS, {"scheduler": "euler-a", "guidance_scale": 3.0, "width": 96, "height": 64}),
        (PROMPTS[0], {"scheduler": "heun", "guidance_scale": 1.0, "width": 64, "height": 64}),
    ],
    ids=["guided", "a batch with draws", "unguided, two calls a step"],
)
def test_it_is_the_pipelines_picture(prompt, said, pipe, whole, inputs, device):
    said = {"steps": 3, "seed": 5, **said}
    wanted = pipe(prompt, **said).images
    with torch.inference_mode():
        pixels = whole(inputs(prompt, **said))["pixels"]
    assert apart(pixels, wanted) <= (LEVELS if device.type == "cpu" else ON_A_GPU)


def test_one_graph_serves_every_prompt_seed_scale_and_sampler_of_its_shapes(pipe, whole, inputs, device, recorder):
    with torch.inference_mode():
        graph = Graphs(whole, recorder, limit_bytes=2**34)
        for i, scheduler in enumerate(["dpm++2m-karras", "ddim", "unipc"]):
            small = {"steps": 2, "width": 64, "height": 64}
            said = {"seed": i, "scheduler": scheduler, "guidance_scale": 2.0 + i, **small}
            pixels = graph(inputs(PROMPTS[i % 2], **said))["pixels"]
            assert apart(pixels, pipe(PROMPTS[i % 2], **said).images) <= (LEVELS if device.type == "cpu" else ON_A_GPU)
    assert recorder.made == 1
