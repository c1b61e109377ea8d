"""IP-Adapters with random weights on a tiny Stable Diffusion 1 and XL: the same images as diffusers."""

from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

import calotype
from calotype.export.quality.metrics import psnr
from tests.helpers.conditioning.ip_adapters import image_encoder, processor, save_ip_adapter
from tests.helpers.tiny_models import save_controlnet, save_lora, save_tiny_model

PROMPTS = ["a large red circle on a blue background", "a green star"]
SCENES = [
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60), 0)
    for s in range(3)
]
LEFT = Image.new("L", (96, 64), 0)
LEFT.paste(255, (0, 0, 40, 64))
RIGHT = LEFT.point(lambda value: 255 - value)
SIZE = {"width": 96, "height": 64}
SETTINGS = SIZE | {"guidance_scale": 5.0, "output_type": "np"}
BACKENDS = ("eager", "onnxruntime", "openvino")
SD = "Stable Diffusion"


@pytest.fixture(scope="module")
def model(demo_folder, sdxl_folder, tmp_path_factory):
    """Functions that return the folders of a model, our pipeline and diffusers' with adapters; each is loaded once."""
    work = tmp_path_factory.mktemp("image_prompts")
    tiny, encoder = save_tiny_model(work / "tiny", demo_folder), image_encoder(work / "encoder")
    folders = {"SD": tiny, "XL": sdxl_folder}

    @cache
    def file(name, kind):
        return save_ip_adapter(work / f"{name}-{kind}.safetensors", folders[name] / "unet", kind)

    @cache
    def ours(name, kinds, backend, **more):
        files = [file(name, kind) for kind in kinds]
        return calotype.load(folders[name], ip_adapter=files, image_encoder=encoder, backend=backend, **more)

    def reference(name, kinds, kind="StableDiffusionPipeline", **more):
        """Return diffusers' pipeline, anew: adapters change its U-Net."""
        kind = kind.replace(SD.replace(" ", ""), "StableDiffusionXL") if name == "XL" else kind
        more |= {} if name == "XL" else {"safety_checker": None}
        vision = CLIPVisionModelWithProjection.from_pretrained(encoder)
        more |= {"image_encoder": vision, "feature_extractor": processor()}
        cls = getattr(diffusers, kind)
        pipe = cls.from_pretrained(folders[name], dtype=torch.float32, low_cpu_mem_usage=False, **more)
        pipe.set_progress_bar_config(disable=True)
        files = [file(name, each) for each in kinds]
        pipe.load_ip_adapter(
            [str(each.parent) for each in files],
            subfolder=[""] * len(files),
            weight_name=[each.name for each in files],
            image_encoder_folder=None,
            low_cpu_mem_usage=False,
        )
        return pipe

    return SimpleNamespace(ours=ours, reference=reference, folders=folders, work=work, file=file)


def generate(pipe, prompts=PROMPTS[:1], scale=0.7, **options):
    pipe.set_ip_adapter_scale(scale)
    generator = [torch.Generator().manual_seed(5 + i) for i in range(len(prompts))]
    images = pipe(prompts, generator=generator, num_inference_steps=2, **SETTINGS | options).images
    assert images.std() > 0.01
    return images


def ours_on(pipe, prompts=PROMPTS[:1], **options):
    return pipe(prompts, seed=5, steps=2, **SETTINGS | options).images


@pytest.mark.parametrize("name", ["SD", "XL"])
@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_one_adapter(model, figures, request, name, kind):
    every = (name, kind) == ("SD", "plus") or request.config.getoption("--parity")
    if (name, kind) in (("XL", "plain"), ("XL", "full")) and not request.config.getoption("--parity"):
        pytest.skip("Stable Diffusion 1 has these kinds, and test_scales_by_block XL's blocks")
    reference = model.reference(name, (kind,))
    expected = generate(reference, ip_adapter_image=SCENES[0])
    for backend in BACKENDS if every else BACKENDS[:1]:
        pipe = model.ours(name, (kind,), backend)
        got = ours_on(pipe, ip_adapter_image=SCENES[0], ip_adapter_scale=0.7)
        title, scheduler = (f"{SD} XL", "euler") if name == "XL" else (f"{SD} 1", "dpm++2m-karras")
        figures.hold((f"{title} with an IP-Adapter, {kind}", "text to image", scheduler), backend, got, expected)
        assert psnr(ours_on(pipe), expected) < 30  # the image changes the result


def test_two_adapters_each_with_images_and_scale(model):
    kinds, images = ("plain", "plus"), [SCENES[0], SCENES[1:]]
    reference = model.reference("SD", kinds)
    expected = generate(reference, scale=[0.7, 0.4], ip_adapter_image=images)
    for backend in BACKENDS:
        pipe = model.ours("SD", kinds, backend)
        got = ours_on(pipe, ip_adapter_image=images, ip_adapter_scale=[0.7, 0.4])
        assert psnr(got, expected) >= 60
    for scale in ([0.7, 0.0], [0.0, 0.4]):
        expected = generate(reference, scale=scale, ip_adapter_image=images)
        assert psnr(ours_on(pipe, ip_adapter_image=images, ip_adapter_scale=scale), expected) >= 60
    absent = ours_on(pipe, ip_adapter_image=[SCENES[0], None], ip_adapter_scale=0.7)
    assert psnr(absent, generate(reference, scale=[0.7, 0.0], ip_adapter_image=images)) >= 60


def test_masks_with_a_scale_for_each_image(model):
    reference = model.reference("SD", ("plain", "plus"))
    masks = diffusers.image_processor.IPAdapterMaskProcessor().preprocess([LEFT, RIGHT], height=64, width=96)
    masks = [masks.reshape(1, 2, 64, 96), None]
    images, scale = [SCENES[:2], SCENES[2]], [[0.8, 0.3], 0.0]
    expected = generate(
        reference, scale=scale, ip_adapter_image=images, cross_attention_kwargs={"ip_adapter_masks": masks}
    )
    for backend in BACKENDS:
        pipe = model.ours("SD", ("plain", "plus"), backend)
        options = {"ip_adapter_image": images, "ip_adapter_scale": scale}
        got = ours_on(pipe, ip_adapter_mask=[[LEFT, RIGHT], None], **options)
        assert psnr(got, expected) >= 60
    as_theirs = ours_on(pipe, cross_attention_kwargs={"ip_adapter_masks": masks}, **options)
    np.testing.assert_array_equal(as_theirs, got)
    assert psnr(ours_on(pipe, **options | {"ip_adapter_scale": [0.8, 0.0]}), expected) < 50


def test_scales_by_block(model):
    blocks = {"down": {"block_1": [0.9]}, "up": {"block_0": [0.2, 0.8]}}
    expected = generate(model.reference("XL", ("plain",)), scale=blocks, ip_adapter_image=SCENES[0])
    pipe = model.ours("XL", ("plain",), "eager")
    assert psnr(ours_on(pipe, ip_adapter_image=SCENES[0], ip_adapter_scale=blocks), expected) >= 60
    assert psnr(ours_on(pipe, ip_adapter_image=SCENES[0], ip_adapter_scale=0.9), expected) < 50


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_embeddings_of_faces_and_of_the_encoder(model, guidance):
    kinds = ("face_id", "plain")
    generator = torch.Generator().manual_seed(0)
    halves = 2 if guidance > 1 else 1
    embeds = [torch.randn(halves, n, width, generator=generator) for n, width in ((1, 512), (2, 48))]
    reference = model.reference("SD", kinds)
    expected = generate(reference, scale=[0.5, 0.5], ip_adapter_image_embeds=embeds, guidance_scale=guidance)
    options = {"guidance_scale": guidance, "ip_adapter_scale": 0.5}
    pipe = model.ours("SD", kinds, "eager")
    assert psnr(ours_on(pipe, ip_adapter_image_embeds=embeds, **options), expected) >= 60


def test_an_image_for_a_batch_of_prompts(model):
    """diffusers repeats the image for each image of one prompt; each prompt of ours must be as alone."""
    pipe = model.ours("SD", ("plus",), "openvino")
    options = {"ip_adapter_image": SCENES[0], "ip_adapter_scale": 0.7}
    together = pipe(PROMPTS, seed=[5, 9], steps=2, **SETTINGS, **options).images
    for i, seed in enumerate((5, 9)):
        alone = pipe(PROMPTS[i], seed=seed, steps=2, **SETTINGS, **options).images
        assert psnr(together[i : i + 1], alone) >= 60
    reference = model.reference("SD", ("plus",))
    reference.set_ip_adapter_scale(0.7)
    generator = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    arguments = {"num_images_per_prompt": 2, "num_inference_steps": 2, "ip_adapter_image": SCENES[0]}
    expected = reference(PROMPTS[0], generator=generator, **arguments, **SETTINGS).images
    assert psnr(pipe(PROMPTS[0], num_images=2, seed=5, steps=2, **SETTINGS, **options).images, expected) >= 60


def test_with_a_controlnet_and_a_lora(model):
    net = save_controlnet(model.folders["SD"] / "unet", model.work / "net", 3)
    lora = save_lora(model.folders["SD"], model.work / "lora.safetensors")
    control = diffusers.ControlNetModel.from_pretrained(net, low_cpu_mem_usage=False)
    reference = model.reference("SD", ("plain",), "StableDiffusionControlNetPipeline", controlnet=control)
    reference.load_lora_weights(lora)
    options = {"ip_adapter_image": SCENES[0], "controlnet_conditioning_scale": 0.6}
    expected = generate(reference, image=SCENES[1].resize((96, 64)), **options)
    pipe = model.ours("SD", ("plain",), "eager", controlnet=net)
    pipe.set_lora(lora)
    got = ours_on(pipe, control_image=SCENES[1].resize((96, 64)), ip_adapter_scale=0.7, **options)
    assert psnr(got, expected) >= 60


def test_with_inpainting(model):
    reference = model.reference("XL", ("plus",), "StableDiffusionInpaintPipeline")
    options = {"image": SCENES[1].resize((96, 64)), "mask_image": LEFT, "strength": 0.9}
    expected = generate(reference, ip_adapter_image=SCENES[0], **options)
    pipe = model.ours("XL", ("plus",), "eager")
    got = ours_on(pipe, ip_adapter_image=SCENES[0], ip_adapter_scale=0.7, **options)
    assert psnr(got, expected) >= 60
