"""Turbo, latent consistency models, the tiny autoencoder, and the hand-over to SDXL's refiner: diffusers' pictures."""

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

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

LEAST_DB = {"eager": 60, "onnxruntime": 50}
PROMPT = "a small red ring above a green star"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 61, 50))
SIZE = {"height": 64, "width": 96}


def elder_of(kind, folder, **more):
    settings = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wanted_from(elder, **said):
    generator = [torch.Generator().manual_seed(5)]
    images = elder(**{"prompt": PROMPT, "generator": generator, "output_type": "np", **said}).images
    assert images.std() > 0.01
    return images


def held(pipe, wanted, least, **said):
    got = pipe(PROMPT, seed=5, output_type="np", **said)
    assert psnr(got.images, wanted) >= least
    return got


@pytest.fixture(scope="module")
def turbo_folder(sdxl_folder, tmp_path_factory):
    """SDXL-Turbo: SDXL's classes, Euler ancestral's scheduler with trailing timesteps."""
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
    said = {"guidance_scale": 0.0, **SIZE}
    wanted = wanted_from(elder_of(diffusers.StableDiffusionXLPipeline, turbo_folder), num_inference_steps=steps, **said)
    for backend, least in LEAST_DB.items():
        made = held(calotype.load(turbo_folder, backend=backend), wanted, least, steps=steps, **said)
        assert made.report.network_calls == steps


def test_xl_turbo_from_a_picture(turbo_folder):
    """Two steps at a strength of a half are one."""
    elder = elder_of(diffusers.StableDiffusionXLImg2ImgPipeline, turbo_folder)
    said = {"guidance_scale": 0.0, "image": IMAGE, "strength": 0.5}
    wanted = wanted_from(elder, num_inference_steps=2, **said)
    for backend, least in LEAST_DB.items():
        made = held(calotype.load(turbo_folder, backend=backend), wanted, least, steps=2, **said)
        assert made.report.network_calls == 1


@pytest.mark.parametrize("guidance_scale", [1.0, 8.5])
def test_a_latent_consistency_model(lcm_folder, guidance_scale):
    said = {"guidance_scale": guidance_scale, **SIZE}
    elder = elder_of(diffusers.LatentConsistencyModelPipeline, lcm_folder)
    wanted = wanted_from(elder, num_inference_steps=4, **said)
    for backend, least in LEAST_DB.items():
        made = held(calotype.load(lcm_folder, backend=backend), wanted, least, steps=4, **said)
        assert made.report.network_calls == 4
    other = calotype.load(lcm_folder, backend="eager")(
        PROMPT, seed=5, steps=4, output_type="np", guidance_scale=3, **SIZE
    )
    assert psnr(other.images, wanted) < 60  # it is told


def test_a_latent_consistency_model_is_never_asked_twice(lcm_folder):
    fake = calotype.load(lcm_folder, backend="fake")
    notes = fake("x", steps=1, seed=1, guidance_scale=8.0, negative_prompt="a ring").report.notes
    assert any("negative prompt has no effect" in note for note in notes)


def test_a_latent_consistency_model_from_a_picture(lcm_folder):
    parts = elder_of(diffusers.LatentConsistencyModelPipeline, lcm_folder).components
    image = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    inpaint = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe = calotype.load(lcm_folder, backend="eager")
    said = {"guidance_scale": 8.5, "image": IMAGE, "strength": 0.6}
    for elder, more, size in ((image, {}, {}), (inpaint, {"mask_image": MASK}, SIZE)):
        elder.set_progress_bar_config(disable=True)
        wanted = wanted_from(elder, num_inference_steps=5, **said, **more, **size)
        held(pipe, wanted, 60, steps=5, **said, **more)


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
    kind, said, size = kinds[task]
    elder = elder_of(kind, demo_folder, vae=net)
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(elder.scheduler.config)
    elder.scheduler = scheduler
    wanted = wanted_from(elder, num_inference_steps=5, guidance_scale=5.0, **said, **size)
    for backend, least in LEAST_DB.items():
        pipe = calotype.load(demo_folder, vae=folder, backend=backend)
        held(pipe, wanted, least, steps=5, scheduler="euler-a", **said, **(size if task == "text" else {}))
    assert prepare(demo_folder, vae=folder, forms=()).fingerprint != prepare(demo_folder, forms=()).fingerprint


def test_the_tiny_autoencoder_as_a_codec(demo_folder, taesd):
    folder, net = taesd
    pipe = calotype.load(demo_folder, vae=folder, backend="eager")
    pixels = torch.from_numpy(np.asarray(IMAGE).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        latents = net.encode(pixels).latents
    assert psnr(pipe.encode(IMAGE), latents.numpy(), peak=float(np.ptp(latents.numpy()))) >= 60
    whole, in_tiles = (pipe.decode(pipe.encode(IMAGE), output_type="np", tile=tile) for tile in (None, 64))
    assert psnr(in_tiles, whole) >= 30


def test_other_autoencoders_are_told(demo_folder, taesd, saved_plan, tmp_path):
    with pytest.raises(SourceError, match="holds a UNet2DConditionModel; an autoencoder is an AutoencoderKL or"):
        calotype.load(demo_folder, vae=demo_folder / "unet", backend="fake")
    with pytest.raises(SourceError, match="there is no folder"):
        calotype.load(demo_folder, vae=tmp_path / "nowhere", backend="fake")
    with pytest.raises(InputError, match="is a plan"):
        calotype.load(saved_plan, vae=taesd[0])


def test_the_refiner_takes_up_what_the_base_hands_on(sdxl_folder, refiner_folder):
    base = elder_of(diffusers.StableDiffusionXLPipeline, sdxl_folder)
    refiner = elder_of(diffusers.StableDiffusionXLImg2ImgPipeline, refiner_folder)
    common = {"num_inference_steps": 10, "guidance_scale": 5.0}
    latents = base(
        PROMPT, denoising_end=0.6, output_type="latent", generator=[torch.Generator().manual_seed(5)], **common, **SIZE
    ).images
    wanted = wanted_from(refiner, image=latents, denoising_start=0.6, **common)
    ours = {"steps": 10, "guidance_scale": 5.0, "seed": 5}
    for backend, least in LEAST_DB.items():
        first = calotype.load(sdxl_folder, backend=backend)(
            PROMPT, denoising_end=0.6, output_type="latent", **ours, **SIZE
        )
        assert psnr(first.images, latents.numpy(), peak=float(np.ptp(latents.numpy()))) >= least
        second = calotype.load(refiner_folder, backend=backend)
        made = second(PROMPT, image=first.images, denoising_start=0.6, output_type="np", **ours)
        assert psnr(made.images, wanted) >= least
        assert first.report.network_calls + made.report.network_calls == 10


def test_the_refiner_on_a_picture(refiner_folder):
    elder = elder_of(diffusers.StableDiffusionXLImg2ImgPipeline, refiner_folder)
    said = {"image": IMAGE, "strength": 0.5, "guidance_scale": 5.0}
    wanted = wanted_from(elder, num_inference_steps=6, negative_prompt="a ring", **said)
    held(calotype.load(refiner_folder, backend="eager"), wanted, 60, steps=6, negative_prompt="a ring", **said)
