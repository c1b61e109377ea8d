"""Image-to-image and inpainting of other families, with U-Nets of nine channels, and together with ControlNets."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import BuildError, InputError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality import psnr

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

LEAST_DB = {"eager": 60, "onnxruntime": 50}
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),  # its default was made for pixels
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
PROMPT = "a large green star on a blue background"
IMAGE, EDGES = (
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (64, 96, 3), dtype=np.uint8)) for s in range(2)
)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (12, 10, 61, 50))
SIZE = {"height": 64, "width": 96}


def elder_of(kind, folder, name="ddim", **more):
    settings = {} if "XL" in kind.__name__ else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings, **more)
    pipe.set_progress_bar_config(disable=True)
    made, overrides = SCHEDULERS[name]
    pipe.scheduler = made.from_config(pipe.scheduler.config, **{"use_karras_sigmas": False, **overrides})
    return pipe


def wanted_from(elder, **said):
    generator = [torch.Generator().manual_seed(5)]
    images = elder(PROMPT, num_inference_steps=6, guidance_scale=5.0, generator=generator, output_type="np", **said)
    assert images.images.std() > 0.01
    return images.images


def held(pipe, wanted, least, **said):
    got = pipe(PROMPT, steps=6, seed=5, guidance_scale=5.0, output_type="np", **said)
    assert psnr(got.images, wanted) >= least
    return got


@pytest.fixture(scope="module")
def nine(inpainting_folder):
    return {backend: calotype.load(inpainting_folder, backend=backend) for backend in LEAST_DB}


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_nine_channels(inpainting_folder, nine, name, strength):
    said = {"image": IMAGE, "mask_image": MASK, "strength": strength}
    elder = elder_of(diffusers.StableDiffusionInpaintPipeline, inpainting_folder, name)
    wanted = wanted_from(elder, **said, **SIZE)
    for backend, pipe in nine.items():
        held(pipe, wanted, LEAST_DB[backend], scheduler=name, **said)


def test_nine_channels_of_xl(sdxl_folder, tmp_path):
    folder = nine_channels_of(sdxl_folder, tmp_path)
    said = {"image": IMAGE, "mask_image": MASK, "strength": 0.7}
    elder = elder_of(diffusers.StableDiffusionXLInpaintPipeline, folder, "euler-a")
    wanted = wanted_from(elder, **said, **SIZE)
    held(calotype.load(folder, backend="eager"), wanted, 60, scheduler="euler-a", **said)


def nine_channels_of(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    torch.manual_seed(9)
    config = diffusers.UNet2DConditionModel.load_config(model / "unet")
    diffusers.UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(model / "unet")
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"))
    return model


@pytest.mark.parametrize("arguments", [{}, {"image": IMAGE}])
def test_a_model_for_inpainting_wants_a_mask(inpainting_folder, arguments):
    fake = calotype.load(inpainting_folder, backend="fake")
    with pytest.raises(InputError, match="paints in masks alone; give it image= and mask_image="):
        fake.stream("x", **arguments)
    assert prepare(inpainting_folder, forms=()).family == "sd1"


def test_a_plan_of_it_is_refused(inpainting_folder, tmp_path):
    with pytest.raises(BuildError, match="no plan can be made of it"):
        build(BuildSpec(model=str(inpainting_folder), output=tmp_path / "plan"))


@pytest.fixture(scope="module")
def xl(sdxl_folder):
    return {backend: calotype.load(sdxl_folder, backend=backend) for backend in LEAST_DB}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_xl(sdxl_folder, xl, name):
    image = elder_of(diffusers.StableDiffusionXLImg2ImgPipeline, sdxl_folder, name)
    inpaint = elder_of(diffusers.StableDiffusionXLInpaintPipeline, sdxl_folder, name)
    said = {"image": IMAGE, "strength": 0.7}
    wanted = wanted_from(image, **said), wanted_from(inpaint, mask_image=MASK, **SIZE, **said)
    for backend, pipe in xl.items():
        held(pipe, wanted[0], LEAST_DB[backend], scheduler=name, **said)
        held(pipe, wanted[1], LEAST_DB[backend], scheduler=name, mask_image=MASK, **said)


def control_of(made, unet_folder, folder):
    made(unet_folder, folder, 0)
    return folder, diffusers.ControlNetModel.from_pretrained(folder, low_cpu_mem_usage=False)


def test_with_a_controlnet(demo_folder, made, tmp_path):
    folder, net = control_of(made, demo_folder / "unet", tmp_path / "net")
    said = {"image": IMAGE, "control_image": EDGES, "strength": 0.7, "controlnet_conditioning_scale": 0.6}
    image = elder_of(diffusers.StableDiffusionControlNetImg2ImgPipeline, demo_folder, "unipc", controlnet=net)
    inpaint = elder_of(diffusers.StableDiffusionControlNetInpaintPipeline, demo_folder, "unipc", controlnet=net)
    wanted = wanted_from(image, **said), wanted_from(inpaint, mask_image=MASK, **SIZE, **said)
    for backend in LEAST_DB:
        pipe = calotype.load(demo_folder, controlnet=folder, backend=backend)
        held(pipe, wanted[0], LEAST_DB[backend], scheduler="unipc", **said)
        held(pipe, wanted[1], LEAST_DB[backend], scheduler="unipc", mask_image=MASK, **said)


def test_with_a_controlnet_that_sees_no_mask_beside_nine_channels(inpainting_folder, made, tiny, tmp_path):
    torch.manual_seed(8)
    tiny(cross_attention_dim=128).save_pretrained(tmp_path / "unet")
    folder, net = control_of(made, tmp_path / "unet", tmp_path / "net")
    kind = diffusers.StableDiffusionControlNetInpaintPipeline
    elder = elder_of(kind, inpainting_folder, "euler-a", controlnet=net)
    said = {"image": IMAGE, "mask_image": MASK, "control_image": EDGES, "strength": 1.0}
    said["controlnet_conditioning_scale"] = 0.6
    wanted = wanted_from(elder, **said, **SIZE)
    pipe = calotype.load(inpainting_folder, controlnet=folder, backend="eager")
    held(pipe, wanted, 60, scheduler="euler-a", **said)


def test_with_a_controlnet_of_xl(sdxl_folder, made, tmp_path):
    folder, net = control_of(made, sdxl_folder / "unet", tmp_path / "net")
    said = {"image": IMAGE, "control_image": EDGES, "strength": 0.7, "controlnet_conditioning_scale": 0.6}
    image = elder_of(diffusers.StableDiffusionXLControlNetImg2ImgPipeline, sdxl_folder, "euler-a", controlnet=net)
    inpaint = elder_of(diffusers.StableDiffusionXLControlNetInpaintPipeline, sdxl_folder, "euler-a", controlnet=net)
    pipe = calotype.load(sdxl_folder, controlnet=folder, backend="eager")
    held(pipe, wanted_from(image, **said), 60, scheduler="euler-a", **said)
    held(pipe, wanted_from(inpaint, mask_image=MASK, **SIZE, **said), 60, scheduler="euler-a", mask_image=MASK, **said)
