"""Unconditional latent diffusion (`UNet2DModel` with a VQModel or an AutoencoderKL): the same images as diffusers."""

import importlib

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.export.sources.source import read_source
from calotype.export.steps.subprocess_task import Outcome
from calotype.plan.family import family_of

LEVELS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32}
LEVELS |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
}
AUTOENCODERS = {
    "a codebook": lambda: diffusers.VQModel(**LEVELS, latent_channels=4, vq_embed_dim=3, num_vq_embeddings=64),
    "a distribution": lambda: diffusers.AutoencoderKL(**LEVELS, latent_channels=3),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Smaller models in the form of CompVis/ldm-celebahq-256."""
    folders = {}
    for name, autoencoder in AUTOENCODERS.items():
        torch.manual_seed(13)
        vae = autoencoder()
        if name == "a codebook":  # its initial values are close to zero, where all codes coincide
            torch.nn.init.normal_(vae.quantize.embedding.weight, std=3)
        torch.manual_seed(11)  # one U-Net for both, and for test_auto, so that a session traces it once
        unet = diffusers.UNet2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        scheduler = diffusers.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
        scheduler.register_to_config(clip_sample=False)
        folders[name] = tmp_path_factory.mktemp("latents") / "model"
        diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler).save_pretrained(folders[name])
    return folders


def run_here(_, function, **arguments):
    """Replace the child process, which takes seconds to start."""
    module, _, name = function.partition(":")
    return Outcome(value=getattr(importlib.import_module(module), name)(**arguments), peak_bytes=0)


@pytest.fixture(scope="module")
def pipes_of(models):
    cases = [("a codebook", "eager"), ("a codebook", "onnxruntime"), ("a distribution", "eager")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calotype.export.onnx.trace_step.run_in_subprocess", run_here)
        return {(model, backend): calotype.load(models[model], backend=backend) for model, backend in cases}


def reference_pipeline(folder):
    pipe = diffusers.LDMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("model", AUTOENCODERS)
def test_images_match_diffusers(models, pipes_of, figures, model, name):
    reference = reference_pipeline(models[model])
    kind, settings = SCHEDULERS[name]
    reference.scheduler = kind.from_config(reference.scheduler.config, **settings)
    if name in ("euler-a", "ddpm"):  # diffusers' pipeline draws their noise without a generator
        generator, step = torch.Generator().manual_seed(5), reference.scheduler.step
        reference.scheduler.step = lambda *a, **k: step(*a, generator=generator, **k)
    else:
        generator = torch.Generator().manual_seed(5)
    reference.scheduler.set_timesteps(6)  # diffusers' pipeline scales the noise before it sets the steps
    expected = reference(num_inference_steps=6, generator=generator, output_type="np").images
    assert expected.std() > 0.01
    for backend in [backend for of, backend in pipes_of if of == model]:
        got = pipes_of[model, backend](steps=6, seed=5, scheduler=name, output_type="np").images
        figures.hold((f"latents of {model}, without text", "from noise", name), backend, got, expected)


def test_a_sampler_is_fitted_without_text(pipes_of):
    pipe = pipes_of["a codebook", "onnxruntime"]
    (fit,) = pipe.fit(3, scheduler="ddim", steps=5, calibration=4, held_out=2, unchecked=True)
    assert not fit.settings["guided"]
    options = {"scheduler": "ddim", "steps": 5, "seed": 5, "output_type": "np"}
    full, fewer = pipe(**options), pipe(calls=3, **options)
    assert fewer.report.network_calls == 3
    (note,) = set(fewer.report.notes) - set(full.report.notes)
    assert "unchecked" in note
    assert 0 < np.abs(fewer.images - full.images).mean() < 0.1


def test_the_autoencoder_encodes_and_decodes(models, pipes_of):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = torch.tensor(np.asarray(image) / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    vae = reference_pipeline(models["a codebook"]).vqvae
    with torch.inference_mode():
        latents = vae.encode(pixels).latents
        expected = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
    pipe = pipes_of["a codebook", "eager"]
    got = pipe.encode(image)
    np.testing.assert_allclose(got, latents.numpy() * 0.18215, atol=1e-5)
    np.testing.assert_allclose(pipe.decode(got, output_type="np"), expected, atol=1e-4)


def test_supported_arguments(models, pipes_of):
    folder = models["a codebook"]
    plan = prepare(folder, forms=())
    assert (plan.family, plan.profile.factor, plan.latents.dims[1]) == ("latents", 2, 3)
    pipe = pipes_of["a codebook", "eager"]
    assert [image.size for image in pipe(steps=1, num_images=2, width=48, height=36).images] == [(48, 36)] * 2
    with pytest.raises(InputError, match="unconditional"):
        pipe("a ring")
    with pytest.raises(SourceError, match="no ControlNet"):
        calotype.load(folder, controlnet=folder / "unet", backend="fake")
    configs = read_source(folder).configs
    with pytest.raises(SourceError, match="out_channels 3"):
        family_of({**configs, "unet": {**configs["unet"], "in_channels": 4}})
