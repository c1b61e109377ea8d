"""Tiny models of the configs of published ones: other depths, no middle block, other schedules, tiny autoencoders."""

import diffusers
import pytest
import torch

from calotype.benchmarks.scripts.open_folders import compare
from tests.helpers.pipelines.tiny import inputs_of, tiny_pipeline
from tests.helpers.tiny_models import SCHEDULE

SD, XL, XL_INPAINT = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"
LEVELS = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}
SSD_1B = {
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, [2, 2], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TRAILING = {"timestep_spacing": "trailing"}
# name: class, settings of the U-Net, scheduler and its config, arguments of the call
MODELS = {
    "SSD-1B": (XL, LEVELS | SSD_1B | {"mid_block_type": "UNetMidBlock2D"}, "EulerDiscreteScheduler", {}, {}),
    "Segmind-Vega": (XL, LEVELS | SSD_1B | {"mid_block_type": None}, "EulerDiscreteScheduler", {}, {}),
    "BK-SDM small": (SD, {"mid_block_type": None}, "PNDMScheduler", {"skip_prk_steps": True}, {}),
    "SDXL inpainting": (XL_INPAINT, {"in_channels": 9}, "EulerDiscreteScheduler", {}, {"strength": 0.99}),
    "Playground v2.5": (XL, {}, "EDMDPMSolverMultistepScheduler", {}, {"guidance_scale": 3.0}),
    "Playground v2.5, Euler": (XL, {}, "EDMEulerScheduler", {}, {"guidance_scale": 3.0}),
    "NoobAI, v-prediction": (XL, {}, "EulerDiscreteScheduler", ZERO_SNR, {}),
    "NoobAI with DDIM": (XL, {}, "DDIMScheduler", ZERO_SNR | {"clip_sample": False}, {"guidance_rescale": 0.7}),
    "Hyper-SD": (XL, {}, "DDIMScheduler", TRAILING | {"clip_sample": False}, {"guidance_scale": 0.0}),
    "Hyper-SD and TCD": (XL, {}, "TCDScheduler", {}, {"guidance_scale": 0.0, "eta": 0.3}),
    "SDXL-Lightning": (XL, {}, "EulerDiscreteScheduler", TRAILING, {"guidance_scale": 0.0}),
    "DMD2": (XL, {}, "LCMScheduler", {}, {"guidance_scale": 0.0, "num_inference_steps": 4}),
    "SDXS": (SD, LEVELS | {"mid_block_type": None}, "EulerDiscreteScheduler", TRAILING, {"num_inference_steps": 1}),
}
LATENTS = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}


def autoencoder_of(name):
    """Return the autoencoder of some models: latents with mean and deviation, and a tiny one of three halvings."""
    torch.manual_seed(3)
    if name == "SDXS":
        return diffusers.AutoencoderTiny()
    if name.startswith("Playground"):
        return diffusers.AutoencoderKL(
            block_out_channels=[32, 64],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            scaling_factor=0.5,
            **LATENTS,
        )
    return None


def pipeline_of(name, demo_folder, tmp_path):
    """Return diffusers' pipeline of a model, and the arguments of its call."""
    class_name, unet, scheduler, config, changes = MODELS[name]
    kind, beta = getattr(diffusers, class_name), {} if scheduler.startswith("EDM") else SCHEDULE
    steps = getattr(diffusers, scheduler)(**beta, **config)
    pipe = tiny_pipeline(kind, demo_folder, tmp_path, unet=unet, scheduler=steps, vae=autoencoder_of(name))
    return pipe, inputs_of(kind, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_config_gives_the_image_of_diffusers(demo_folder, tmp_path, name):
    assert compare(*pipeline_of(name, demo_folder, tmp_path)) >= 60


def test_a_model_without_a_middle_block_is_traced(demo_folder, tmp_path):
    """One trace serves both backends."""
    pipe, inputs = pipeline_of("BK-SDM small", demo_folder, tmp_path)
    for backend in ("onnxruntime", "openvino"):
        assert compare(pipe, inputs, backend=backend) >= 50, backend
