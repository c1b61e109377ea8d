"""Control-LoRAs on a tiny SDXL: the images of diffusers with the same ControlNet, and files that do not fit."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export.quality.metrics import psnr
from tests.helpers.conditioning.control_loras import save_control_lora, save_xl

pytestmark = pytest.mark.slow
SCENE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64), 0)
SETTINGS = {"guidance_scale": 5.0, "output_type": "np"}
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def model(sdxl_folder, tmp_path_factory):
    """The folder of a model, a Control-LoRA for it, and the ControlNet that it stands for."""
    work = tmp_path_factory.mktemp("control_loras")
    folder = save_xl(work / "xl", sdxl_folder)
    return folder, work / "canny.safetensors", save_control_lora(folder / "unet", work / "canny.safetensors")


@pytest.fixture(scope="module")
def expected(model):
    pipe = diffusers.StableDiffusionXLControlNetPipeline.from_pretrained(
        model[0], controlnet=model[2], dtype=torch.float32, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    options = {"image": SCENE, "controlnet_conditioning_scale": 0.7, "num_inference_steps": 2, **SETTINGS}
    return pipe(PROMPT, generator=generator, **options).images


def generate(pipe, **options):
    options = {"control_image": SCENE, "controlnet_conditioning_scale": 0.7, "steps": 2, "seed": 5, **options}
    return pipe(PROMPT, **SETTINGS, **options).images


def test_it_generates_the_images_of_its_controlnet(model, expected, figures, request):
    folder, file, _ = model
    every = request.config.getoption("--parity")
    for backend in ("eager", "onnxruntime", "openvino") if every else ("eager",):
        got = generate(calotype.load(folder, controlnet=file, backend=backend))
        figures.hold(("Stable Diffusion XL with a Control-LoRA", "text to image", "euler"), backend, got, expected)
    assert psnr(generate(calotype.load(folder, backend="eager"), control_image=None, width=64, height=64), got) < 40


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_diffusers_reads_the_same_file(model, tmp_path):
    """Its own loader makes the same residuals of it, but for the biases of low-rank layers, which it leaves out."""
    folder, file = model[0], tmp_path / "canny.safetensors"
    net = save_control_lora(folder / "unet", file, shift=0)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    theirs = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    theirs.load_lora_adapter(load_file(file), prefix=None, controlnet_config=unet.config)
    torch.manual_seed(0)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(1, 77, 176),
        "controlnet_cond": torch.rand(1, 3, 64, 64),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 24), "time_ids": torch.ones(1, 6)},
        "return_dict": False,
    }
    with torch.no_grad():
        for got, wanted in zip(theirs(**inputs)[0], net(**inputs)[0], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("middle_block_out.0.weight"),
        lambda tensors: tensors.pop("input_blocks.4.0.in_layers.2.down"),
        lambda tensors: tensors.update({"input_blocks.4.0.in_layers.2.up": torch.zeros(64, 3, 1, 1)}),
        lambda tensors: tensors.update({"input_blocks.44.0.in_layers.2.weight": torch.zeros(1)}),
        lambda tensors: tensors.pop("input_hint_block.8.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(model, tmp_path, change):
    tensors = load_file(model[1])
    change(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(SourceError, match="odd"):
        calotype.load(model[0], controlnet=tmp_path / "odd.safetensors", backend="fake")


def test_one_of_another_family_is_refused(model):
    with pytest.raises(SourceError, match="family"):
        calotype.load("demo", controlnet=model[1], backend="fake")
