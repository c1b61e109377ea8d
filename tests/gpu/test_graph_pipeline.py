"""The graph pipeline compared with the normal pipeline on the demonstration model; one graph serves many images."""

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.backends.torch.cuda import Module
from calotype.backends.torch.modules import load_module
from calotype.cuda.graphs import CudaGraphCache
from calotype.graph.inputs import arrays_of, options_of
from calotype.graph.pipeline import GraphPipeline
from calotype.request.prompts import tokenizers_of
from calotype.request.resolved import resolve
from calotype.sampling.cache import sampler_for
from calotype.stages.denoise_inputs import prepare
from calotype.stages.vae import Codec
from calotype.system.trace import Stopwatch
from tests.helpers.fits import fit_for, store

PROMPTS = ["a large red circle on a blue background", "a green star on a white background"]
LEVELS = 1  # of 255: rounding of sums may change a pixel by one
ON_A_GPU = 8  # its convolutions round differently
SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def graph_pipeline(pipe, device):
    """The pipeline with networks without kernels: test_fused tests the kernels."""
    folders = {name: c.artifact("diffusers").path for name, c in pipe.plan.components.items()}
    modules = {n: load_module(n, folders[n]).to(device) for n in ("text_encoder", "unet", "vae_decoder")}
    outputs = {name: [b.name for b in pipe.plan.components[name].outputs] for name in modules}
    networks = {name: Module(module, torch.float32, outputs[name]) for name, module in modules.items()}
    return GraphPipeline(pipe.plan, networks).to(device)


def graph_arguments(pipe, device, prompt, fit=None, **options):
    """Return the tensors and the options of a call's graph, with a fitted sampler in place of the schedule if given."""
    plan = pipe.plan
    request = resolve(prompt, options, plan, tokenizers_of(plan))
    _, matrix = sampler_for(request.scheduler, plan.scheduler, request.steps, plan.samplers, request.schedule_range)
    if fit is not None:
        matrix = fit.matrix(matrix, "noise", request.guidance_scale)
    arrays = arrays_of(request, matrix, prepare(plan, request, Codec(plan, pipe.component), Stopwatch()))
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}, options_of(request)


def gradient() -> Image.Image:
    side = np.linspace(0, 255, 64, dtype=np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(side[:, None], side[None], side[::-1, None]), axis=-1))


def left_half() -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(np.array([[255, 0]], np.uint8), 64, 0), 32, 1))


def max_difference(pixels, images) -> int:
    expected = np.stack([np.asarray(image) for image in images]).astype(int)
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.cpu().numpy().astype(int) - expected).max())


LONG = f"{PROMPTS[0]}, and {'very ' * 80}large"
CASES = {  # prompt, options, and the inputs that they add
    "guided": (PROMPTS[0], {"scheduler": "dpm++2m-karras", "negative_prompt": "a blue ring"}, set()),
    "a batch with draws": (PROMPTS, {"scheduler": "euler-a", "guidance_scale": 3.0, "width": 96}, set()),
    "unguided, two calls a step": (PROMPTS[0], {"scheduler": "heun", "guidance_scale": 1.0}, set()),
    "rescaled, of an earlier layer": (
        PROMPTS[0],
        {"guidance_rescale": 0.7, "clip_skip": 1},
        set(),
    ),
    "of two chunks, some words heavier": ([LONG, "a (green:1.3) star"], {}, {"weights.text_encoder"}),
    "from an image": (PROMPTS[0], {"image": gradient(), "strength": 0.7}, {"original", "image_coefficients"}),
    "into a mask": (
        PROMPTS[0],
        {"image": gradient(), "mask_image": left_half(), "strength": 0.7},
        {"original", "image_coefficients", "inpaint_mask", "masked_rows"},
    ),
}
ALWAYS = {"ids.text_encoder", "has_text", "noise", "draws", "rows", "timesteps", "guidance"}


@pytest.mark.parametrize("name", CASES)
def test_the_graphs_image_equals_the_pipelines(name, pipe, graph_pipeline, device):
    prompt, options, more = CASES[name]
    options = {"steps": 3, "seed": 5, "guidance_scale": 5.0, **SMALL, **options}
    expected = pipe(prompt, **options).images
    tensors, graph_options = graph_arguments(pipe, device, prompt, **options)
    assert set(tensors) == ALWAYS | more
    with torch.inference_mode():
        pixels = graph_pipeline(tensors, graph_options)["pixels"]
    assert max_difference(pixels, expected) <= (LEVELS if device.type == "cpu" else ON_A_GPU)


def test_a_fitted_sampler_gives_the_pipelines_image(pipe, graph_pipeline, device, tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    fit = store(fit_for(pipe.plan, scheduler="euler-a", steps=5, calls=3, height=64, width=64))
    options = {"steps": 5, "seed": 5, "scheduler": "euler-a", "guidance_scale": 4.0, **SMALL}
    result = pipe(PROMPTS[0], calls=3, **options)
    assert (result.report.network_calls, result.report.notes) == (3, ())
    tensors, graph_options = graph_arguments(pipe, device, PROMPTS[0], fit, **options)
    assert tensors["timesteps"].shape == (1, 4)  # three calls, and the end
    with torch.inference_mode():
        pixels = graph_pipeline(tensors, graph_options)["pixels"]
    assert max_difference(pixels, result.images) <= (LEVELS if device.type == "cpu" else ON_A_GPU)


def test_one_graph_serves_every_prompt_seed_scale_and_sampler(pipe, graph_pipeline, device, recorder):
    with torch.inference_mode():
        graph = CudaGraphCache(graph_pipeline, recorder, limit_bytes=2**34)
        for i, scheduler in enumerate(["dpm++2m-karras", "ddim", "unipc"]):
            options = {"seed": i, "steps": 2, "scheduler": scheduler, "guidance_scale": 2.0 + i, **SMALL}
            tensors, graph_options = graph_arguments(pipe, device, PROMPTS[i % 2], **options)
            pixels = graph(tensors, options=graph_options)["pixels"]
            assert max_difference(pixels, pipe(PROMPTS[i % 2], **options).images) <= (
                LEVELS if device.type == "cpu" else ON_A_GPU
            )
    assert recorder.count == 1
