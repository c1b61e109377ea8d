"""Pipelines of every kind that `load` opens, others that it does not open, and the arguments of calls."""

import diffusers
import pytest
import torch

import calotype
from calotype.drop_in.forward import eager_only
from calotype.drop_in.image_check import psnr_db
from tests.helpers.pipelines.accelerated import MIN_DB, against_eager, reasons
from tests.helpers.pipelines.tiny import IMAGE, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

OPENED = {
    "StableDiffusionImg2ImgPipeline": {},
    "StableDiffusionInpaintPipeline": {"strength": 1.0},
    "StableDiffusionControlNetPipeline": {"controlnet_conditioning_scale": 0.6, "guess_mode": True},
    "StableDiffusionControlNetImg2ImgPipeline": {"control_guidance_end": 0.5},
    "StableDiffusionControlNetInpaintPipeline": {"controlnet_conditioning_scale": 1.7},
    "StableDiffusionControlNetPAGPipeline": {"pag_scale": 0.0},
    "LatentConsistencyModelPipeline": {},
    "LatentConsistencyModelImg2ImgPipeline": {"guidance_scale": 3.0},
    "StableDiffusionXLPipeline": {"guidance_rescale": 0.5, "original_size": (64, 48), "clip_skip": 1},
    "StableDiffusionXLImg2ImgPipeline": {},
    "StableDiffusionXLInpaintPipeline": {},
    "StableDiffusionXLPAGPipeline": {"pag_scale": 0.0},
    "StableDiffusionPAGPipeline": {"pag_scale": 0.0},
    "StableDiffusionPAGImg2ImgPipeline": {"pag_scale": 0.0},
    "StableDiffusionPAGInpaintPipeline": {"strength": 0.9, "pag_scale": 0.0},
}
OTHERS = {
    "StableDiffusionPanoramaPipeline": {"height": 32, "width": 64},
    "SemanticStableDiffusionPipeline": {"editing_prompt": ["a blue star"], "reverse_editing_direction": [True]},
    "StableDiffusionModelEditingPipeline": {},
}


def accelerated(name, demo_folder, tmp_path, **settings):
    pipe = tiny_pipeline(getattr(diffusers, name), demo_folder, tmp_path, **settings)
    return calotype.accelerate(pipe, backend="onnxruntime", verify=False)


@pytest.mark.parametrize("name", OPENED)
def test_classes_that_load_opens(name, demo_folder, tmp_path):
    pipe = accelerated(name, demo_folder, tmp_path)
    assert against_eager(pipe, **OPENED[name]) > MIN_DB
    report = calotype.accelerate_report(pipe)
    assert not reasons(report)
    assert report["unet"].compiled_calls
    assert all(module.compiled_calls for module in report.modules if module.name.startswith(("text", "control")))


@pytest.mark.parametrize("name", OTHERS)
def test_classes_that_load_does_not_open(name, demo_folder, tmp_path):
    pipe = accelerated(name, demo_folder, tmp_path)
    assert against_eager(pipe, **OTHERS[name]) > MIN_DB
    assert calotype.accelerate_report(pipe)["unet"].compiled_calls
    assert not reasons(calotype.accelerate_report(pipe))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("StableDiffusionPAGPipeline", {"pag_scale": 3.0}, "PAG"),
        ("StableDiffusionSAGPipeline", {"sag_scale": 0.7, "height": 128, "width": 128}, "hook"),
    ],
)
def test_classes_with_attention_of_their_own_run_the_unet_in_pytorch(name, options, word, demo_folder, tmp_path):
    pipe = accelerated(name, demo_folder, tmp_path)
    assert against_eager(pipe, **options) > MIN_DB
    assert any(word in reason for reason in calotype.accelerate_report(pipe)["unet"].reasons)
    assert calotype.accelerate_report(pipe)["vae.decoder"].compiled_calls


def test_an_edit_by_inversion(demo_folder, tmp_path):
    """LEDITS++: the timesteps rise, then fall."""
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    pipe = accelerated("LEditsPPPipelineStableDiffusion", demo_folder, tmp_path, scheduler=scheduler)

    def edit():
        torch.manual_seed(2)
        pipe.invert(image=IMAGE, num_inversion_steps=4, skip=0.2, generator=torch.Generator().manual_seed(3))
        return pipe(editing_prompt=["a blue star"], use_intersect_mask=False, output_type="np").images

    result = edit()
    with eager_only():
        assert psnr_db(result, edit()) > MIN_DB
    assert calotype.accelerate_report(pipe)["unet"].compiled_calls


def test_latents_of_a_loop_of_its_own(pipe):
    """The modules alone, as code of users calls them."""
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    scheduler = diffusers.DDIMInverseScheduler.from_config(pipe.scheduler.config)

    @torch.no_grad()
    def invert():
        states, _ = pipe.encode_prompt("a red ring", "cpu", 1, False)
        pixels = pipe.image_processor.preprocess(IMAGE)
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        scheduler.set_timesteps(3)
        for timestep in scheduler.timesteps:
            latents = scheduler.step(pipe.unet(latents, timestep, states).sample, timestep, latents).prev_sample
        return pipe.vae.decode(latents, return_dict=False)

    result = invert()
    with eager_only():
        assert psnr_db(result, invert()) > MIN_DB
    assert not reasons(calotype.accelerate_report(pipe))
