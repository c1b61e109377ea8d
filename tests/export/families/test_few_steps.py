"""Turbo, latent consistency models, the tiny autoencoder and SDXL's refiner: the same images as diffusers."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.export.quality.metrics import psnr

MIN_DB = {"eager": 60, "onnxruntime": 50}
PROMPT = "a small red ring above a green star"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 45, 27))
SIZE = {"height": 32, "width": 64}


def reference_pipeline(kind, folder, **more):
    settings = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference_images(reference, **options):
    generator = [torch.Generator().manual_seed(5)]
    images = reference(**{"prompt": PROMPT, "generator": generator, "output_type": "np", **options}).images
    assert images.std() > 0.01
    return images


def check_images(pipe, expected, min_db, **options):
    got = pipe(PROMPT, seed=5, output_type="np", **options)
    assert psnr(got.images, expected) >= min_db
    return got


@pytest.fixture(scope="module")
def turbo_folder(sdxl_folder, tmp_path_factory):
    """SDXL-Turbo: SDXL's classes, and the Euler ancestral scheduler with trailing timesteps."""
    folder = shutil.copytree(sdxl_folder, tmp_path_factory.mktemp("turbo") / "model")
    config = diffusers.EulerDiscreteScheduler.load_config(folder / "scheduler")
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_xl_turbo(turbo_folder, steps):
    options = {"guidance_scale": 0.0, **SIZE}
    reference = reference_pipeline(diffusers.StableDiffusionXLPipeline, turbo_folder)
    expected = reference_images(reference, num_inference_steps=steps, **options)
    for backend, min_db in MIN_DB.items():
        result = check_images(calotype.load(turbo_folder, backend=backend), expected, min_db, steps=steps, **options)
        assert result.report.network_calls == steps


def test_xl_turbo_from_an_image(turbo_folder):
    """Two steps with strength 0.5 run one step."""
    reference = reference_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, turbo_folder)
    options = {"guidance_scale": 0.0, "image": IMAGE, "strength": 0.5}
    expected = reference_images(reference, num_inference_steps=2, **options)
    for backend, min_db in MIN_DB.items():
        result = check_images(calotype.load(turbo_folder, backend=backend), expected, min_db, steps=2, **options)
        assert result.report.network_calls == 1


@pytest.mark.parametrize("guidance_scale", [1.0, 8.5])
def test_a_latent_consistency_model(lcm_folder, guidance_scale):
    options = {"guidance_scale": guidance_scale, **SIZE}
    reference = reference_pipeline(diffusers.LatentConsistencyModelPipeline, lcm_folder)
    expected = reference_images(reference, num_inference_steps=4, **options)
    for backend, min_db in MIN_DB.items():
        result = check_images(calotype.load(lcm_folder, backend=backend), expected, min_db, steps=4, **options)
        assert result.report.network_calls == 4
    other = calotype.load(lcm_folder, backend="eager")(
        PROMPT, seed=5, steps=4, output_type="np", guidance_scale=3, **SIZE
    )
    assert psnr(other.images, expected) < 60  # the U-Net depends on the guidance scale


def test_a_latent_consistency_model_uses_no_negative_prompt(lcm_folder):
    fake = calotype.load(lcm_folder, backend="fake")
    notes = fake("x", steps=1, seed=1, guidance_scale=8.0, negative_prompt="a ring").report.notes
    assert any("negative prompt has no effect" in note for note in notes)


def test_a_latent_consistency_model_from_an_image(lcm_folder):
    parts = reference_pipeline(diffusers.LatentConsistencyModelPipeline, lcm_folder).components
    image = diffusers.LatentConsistencyModelImg2ImgPipeline(**parts, requires_safety_checker=False)
    inpaint = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe = calotype.load(lcm_folder, backend="eager")
    options = {"guidance_scale": 8.5, "image": IMAGE, "strength": 0.6}
    for reference, more, size in ((image, {}, {}), (inpaint, {"mask_image": MASK}, SIZE)):
        reference.set_progress_bar_config(disable=True)
        expected = reference_images(reference, num_inference_steps=5, **options, **more, **size)
        result = check_images(pipe, expected, 60, steps=5, **options, **more)
        assert result.report.network_calls == (3 if more else 5)  # the scheduler places all steps within the strength


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("taesd") / "vae"
    widths = (16,) * 4
    net = diffusers.AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)
    net.save_pretrained(folder)
    return folder, net.eval()


@pytest.mark.parametrize("task", ["text", "image", "mask"])
def test_the_tiny_autoencoder_in_place_of_the_models(demo_folder, taesd, task):
    folder, net = taesd
    kinds = {
        "text": (diffusers.StableDiffusionPipeline, {}, SIZE),
        "image": (diffusers.StableDiffusionImg2ImgPipeline, {"image": IMAGE, "strength": 0.6}, {}),
        "mask": (diffusers.StableDiffusionInpaintPipeline, {"image": IMAGE, "mask_image": MASK, "strength": 0.6}, SIZE),
    }
    kind, options, size = kinds[task]
    reference = reference_pipeline(kind, demo_folder, vae=net)
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(reference.scheduler.config)
    reference.scheduler = scheduler
    expected = reference_images(reference, num_inference_steps=5, guidance_scale=5.0, **options, **size)
    for backend, min_db in MIN_DB.items():
        pipe = calotype.load(demo_folder, vae=folder, backend=backend)
        check_images(
            pipe, expected, min_db, steps=5, scheduler="euler-a", **options, **(size if task == "text" else {})
        )
    assert prepare(demo_folder, vae=folder, forms=()).fingerprint != prepare(demo_folder, forms=()).fingerprint


def test_the_tiny_autoencoder_encodes_and_decodes(demo_folder, taesd):
    folder, net = taesd
    pipe = calotype.load(demo_folder, vae=folder, backend="eager")
    pixels = torch.from_numpy(np.asarray(IMAGE).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        latents = net.encode(pixels).latents
    assert psnr(pipe.encode(IMAGE), latents.numpy(), peak=float(np.ptp(latents.numpy()))) >= 60
    full, in_tiles = (pipe.decode(pipe.encode(IMAGE), output_type="np", tile=tile) for tile in (None, 64))
    assert psnr(in_tiles, full) >= 30


def test_other_autoencoders_are_refused(demo_folder, taesd, saved_plan, tmp_path):
    with pytest.raises(SourceError, match="holds a UNet2DConditionModel"):
        calotype.load(demo_folder, vae=demo_folder / "unet", backend="fake")
    with pytest.raises(SourceError, match="there is no folder"):
        calotype.load(demo_folder, vae=tmp_path / "nowhere", backend="fake")
    with pytest.raises(InputError, match="is a plan"):
        calotype.load(saved_plan, vae=taesd[0])


def test_the_refiner_continues_from_the_bases_latents(sdxl_folder, refiner_folder):
    base = reference_pipeline(diffusers.StableDiffusionXLPipeline, sdxl_folder)
    refiner = reference_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, refiner_folder)
    common = {"num_inference_steps": 10, "guidance_scale": 5.0}
    latents = base(
        PROMPT, denoising_end=0.6, output_type="latent", generator=[torch.Generator().manual_seed(5)], **common, **SIZE
    ).images
    expected = reference_images(refiner, image=latents, denoising_start=0.6, **common)
    ours = {"steps": 10, "guidance_scale": 5.0, "seed": 5}
    for backend, min_db in MIN_DB.items():
        first = calotype.load(sdxl_folder, backend=backend)(
            PROMPT, denoising_end=0.6, output_type="latent", **ours, **SIZE
        )
        assert psnr(first.images, latents.numpy(), peak=float(np.ptp(latents.numpy()))) >= min_db
        second = calotype.load(refiner_folder, backend=backend)
        result = second(PROMPT, image=first.images, denoising_start=0.6, output_type="np", **ours)
        assert psnr(result.images, expected) >= min_db
        assert first.report.network_calls + result.report.network_calls == 10


def test_the_refiner_on_an_image(refiner_folder):
    reference = reference_pipeline(diffusers.StableDiffusionXLImg2ImgPipeline, refiner_folder)
    options = {"image": IMAGE, "strength": 0.5, "guidance_scale": 5.0, "negative_prompt": "a ring"}
    expected = reference_images(reference, num_inference_steps=6, **options)
    check_images(calotype.load(refiner_folder, backend="eager"), expected, 60, steps=6, **options)
