"""Models whose U-Net takes an image: the images of diffusers' pipelines with the same weights, and odd arguments."""

import json
import warnings
from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from calotype.export import build, prepare
from calotype.export.precision.candidates import candidates
from calotype.export.precision.quantize import quantize
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.plan.profile import Range
from tests.helpers import tiny_models
from tests.helpers.parity import MIN_DB
from tests.helpers.small_builds import small_spec
from tests.helpers.tiny_models import save_lora

pytestmark = pytest.mark.slow
PROMPTS = ["a blue square", "a small red ring above a green star"]
KINDS = {
    "edit": diffusers.StableDiffusionInstructPix2PixPipeline,
    "depth": diffusers.StableDiffusionDepth2ImgPipeline,
    "pixels": diffusers.StableDiffusionUpscalePipeline,
    "latents": diffusers.StableDiffusionLatentUpscalePipeline,
    "vision": diffusers.StableDiffusionImageVariationPipeline,
}
CHECKED = ("edit", "pixels", "vision")  # diffusers' classes with a safety checker
STEPS = 3


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


IMAGES = [picture(0, 64, 32), picture(1, 64, 32)]
SMALL = [picture(2, 32, 16), picture(3, 32, 16)]
DEPTH = np.random.default_rng(4).random((50, 40), dtype=np.float32) * 9 - 3


@pytest.fixture(scope="session")
def folders(tmp_path_factory, demo_folder):
    """The folder of a tiny model of each kind."""
    base = tmp_path_factory.mktemp("takes-images")
    return {kind: getattr(tiny_models, f"save_{kind}")(base / kind, demo_folder) for kind in KINDS}


@pytest.fixture(scope="module")
def pipes(folders):
    """Our pipeline of each kind in PyTorch."""
    return {kind: calotype.load(folder, backend="eager") for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def fakes(folders):
    return {kind: calotype.load(folder, backend="fake") for kind, folder in folders.items()}


@cache
def reference(folder, kind):
    """Return diffusers' pipeline of a folder, loaded once."""
    more = {"safety_checker": None} if kind in CHECKED else {}
    pipe = KINDS[kind].from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected_images(folder, kind, **options):
    texts = {} if kind == "vision" else {"prompt": PROMPTS}
    generator = [torch.Generator().manual_seed(11 + i) for i in range(2)]
    call = {"num_inference_steps": STEPS, "generator": generator, "output_type": "np"}
    with warnings.catch_warnings(action="ignore"):  # of torch's autocast, which diffusers enters for depths
        images = reference(folder, kind)(**texts, **call, **options).images
    assert images.std() > 0.01  # a real image: flat gray would always match
    return images


def our_images(pipe, kind, **options):
    prompts = None if kind == "vision" else PROMPTS
    return pipe(prompts, steps=STEPS, seed=11, output_type="np", **options).images


CASES = [
    ("edit", {"image": IMAGES, "guidance_scale": 5.0, "image_guidance_scale": 1.7}),
    (
        "edit",
        {"image": IMAGES, "guidance_scale": 5.0, "image_guidance_scale": 0.5},
    ),  # without guidance, as in diffusers
    ("edit", {"image": IMAGES, "guidance_scale": 1.0}),
    ("depth", {"image": IMAGES, "guidance_scale": 5.0, "strength": 0.7}),  # by its estimator
    ("pixels", {"image": SMALL, "guidance_scale": 5.0, "noise_level": 70}),
    ("pixels", {"image": SMALL, "guidance_scale": 1.0}),
    ("latents", {"image": [picture(5), picture(6)], "guidance_scale": 5.0}),
    ("latents", {"image": [picture(5), picture(6)], "guidance_scale": 1.0}),
    ("vision", {"image": [IMAGES[0], picture(7, 40, 72)], "guidance_scale": 5.0, "width": 64, "height": 32}),
    ("vision", {"image": IMAGES, "guidance_scale": 1.0, "width": 64, "height": 32}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_images_match_diffusers(kind, options, folders, pipes):
    assert psnr(our_images(pipes[kind], kind, **options), expected_images(folders[kind], kind, **options)) >= 60


@pytest.mark.parametrize("kind", ["edit", "pixels"])
def test_compiled_networks_match_diffusers(kind, folders):
    options = next(options for each, options in CASES if each == kind)
    expected = expected_images(folders[kind], kind, **options)
    for backend in ("onnxruntime", "openvino"):
        pipe = calotype.load(folders[kind], backend=backend)
        assert psnr(our_images(pipe, kind, **options), expected) >= MIN_DB[backend], backend


def test_a_depth_map_of_any_size_and_type(folders, pipes):
    options = {"image": IMAGES, "guidance_scale": 5.0, "strength": 0.7}
    maps = torch.from_numpy(np.stack([DEPTH, DEPTH]))
    expected = expected_images(folders["depth"], "depth", depth_map=maps, **options)
    for depths in (DEPTH, maps, [DEPTH, DEPTH.astype(np.float64)], Image.fromarray(DEPTH)):
        assert psnr(our_images(pipes["depth"], "depth", depth_map=depths, **options), expected) >= 60
    assert our_images(pipes["depth"], "depth", depth_map=DEPTH, width=64, height=32).shape == (2, 32, 64, 3)


def test_a_lora_changes_what_diffusers_changes(folders, tmp_path):
    for kind in ("edit", "depth"):
        lora = save_lora(folders[kind], tmp_path / f"{kind}.safetensors", components=("unet", "text_encoder"))
        options = next(options for each, options in CASES if each == kind)
        theirs = reference(folders[kind], kind)
        theirs.load_lora_weights(lora)
        try:
            expected = expected_images(folders[kind], kind, **options)
        finally:
            theirs.unload_lora_weights()
        pipe = calotype.load(folders[kind], backend="eager")
        plain = our_images(pipe, kind, **options)
        pipe.set_lora(lora)
        assert psnr(our_images(pipe, kind, **options), expected) >= 60
        pipe.set_lora(None)
        np.testing.assert_array_equal(our_images(pipe, kind, **options), plain)


def test_sizes_and_numbers_of_images(fakes):
    one = {"steps": 1, "output_type": "np"}
    assert fakes["edit"]("x", image=IMAGES[0], num_images=2, **one).images.shape == (2, 32, 64, 3)
    latents = fakes["pixels"]("x", image=SMALL[0], steps=1, output_type="latent").images
    assert latents.shape == (1, 4, 16, 32)  # of 64 x 128 pixels: the fake decoder has the factor of most models
    assert fakes["latents"]("x", image=picture(0, 128, 64), **one).images.shape == (1, 128, 256, 3)
    assert fakes["latents"]("x", image=np.zeros((1, 4, 8, 16), np.float32), **one).images.shape == (1, 128, 256, 3)
    assert fakes["vision"](image=IMAGES, num_images=2, **one).images.shape[0] == 4
    assert fakes["edit"](PROMPTS, image=IMAGES, guidance_interval=(0.5, 1), steps=2).images


def test_the_settings_are_in_the_png(fakes):
    image = fakes["edit"]("x", image=IMAGES[0], steps=1, image_guidance_scale=2).images[0]
    assert image.info["image_guidance_scale"] == "2.0"
    assert fakes["pixels"]("x", image=SMALL[0], steps=1).images[0].info["noise_level"] == "20"
    assert "image_guidance_scale" not in fakes["depth"]("x", depth_map=DEPTH, steps=1).images[0].info


@pytest.mark.parametrize(
    ("kind", "arguments", "keyword"),
    [
        ("edit", {}, "image="),
        ("edit", {"image": IMAGES[0], "strength": 0.5}, "strength"),
        ("edit", {"image": IMAGES[0], "mask_image": IMAGES[0]}, "mask_image"),
        ("edit", {"image": IMAGES[0], "image_guidance_scale": float("nan")}, "image_guidance_scale"),
        ("edit", {"image": IMAGES[0], "image_guidance_scale": "1"}, "image_guidance_scale"),
        ("edit", {"image": IMAGES[0], "noise_level": 3}, "noise_level"),
        ("pixels", {"image": SMALL[0], "noise_level": 100}, "noise_level"),
        ("pixels", {"image": SMALL[0], "noise_level": 2.5}, "noise_level"),
        ("pixels", {"image": SMALL[0], "image_guidance_scale": 2}, "image_guidance_scale"),
        ("pixels", {"image": np.full((1, 4, 8, 8), 2.0, np.float32)}, "pixels"),
        ("pixels", {"image": SMALL[0], "depth_map": DEPTH}, "depth_map"),
        ("pixels", {"image": picture(0, 1024, 512)}, "width"),
        ("latents", {}, "image="),
        ("edit", {"image": IMAGES[0], "hires": 1.5}, "hires"),
        ("depth", {}, "depth_map"),
        ("depth", {"depth_map": np.ones((8, 8))}, "depth_map"),
        ("depth", {"depth_map": DEPTH * np.nan}, "finite"),
        ("depth", {"depth_map": np.stack([[DEPTH, DEPTH]] * 2)}, "depth_map"),
        ("depth", {"depth_map": np.zeros((0, 4))}, "depth_map"),
        ("depth", {"depth_map": [DEPTH] * 3}, "3"),
        ("depth", {"depth_map": "no such file.png"}, "depth_map"),
        ("depth", {"depth_map": object()}, "depth_map"),
        ("vision", {"image": IMAGES[0], "denoising_start": 0.5}, "denoising_start"),
        ("vision", {"image": []}, "image"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kind, arguments, keyword, fakes):
    with pytest.raises(InputError, match=keyword):
        fakes[kind].stream(None if kind == "vision" else "x", **arguments)


def test_a_prompt_does_not_go_with_a_vision_encoder(fakes):
    with pytest.raises(InputError, match="prompt"):
        fakes["vision"].stream("x", image=IMAGES[0])


@pytest.mark.parametrize("arguments", [{"image_guidance_scale": 1.5}, {"noise_level": 20}, {"depth_map": DEPTH}])
def test_arguments_of_other_models_are_refused(arguments, fake):
    with pytest.raises(InputError, match=next(iter(arguments))):
        fake.stream("x", **arguments)


@pytest.mark.parametrize(("kind", "family"), [("edit", "sd1"), ("vision", "sd1"), ("pixels", "sd1")])
def test_a_family_stays_data(kind, family, folders):
    plan = prepare(folders[kind], forms=())
    assert (plan.family, plan.image_input.kind) == (family, kind)
    assert plan.profile.rows == (3 if kind == "edit" else 2)


@pytest.mark.parametrize("cosxl", [False, True])
def test_editing_with_xl(cosxl, sdxl_folder, tmp_path):
    folder = tiny_models.save_edit_xl(tmp_path / "model", sdxl_folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_cosxl_edit": cosxl}))
    kind = diffusers.StableDiffusionXLInstructPix2PixPipeline
    theirs = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, is_cosxl_edit=cosxl)
    theirs.set_progress_bar_config(disable=True)
    options = {"image": IMAGES[0], "guidance_scale": 5.0, "image_guidance_scale": 1.7, "width": 64, "height": 32}
    options |= {"guidance_rescale": 0.7, "output_type": "np"}
    generator = [torch.Generator().manual_seed(11)]
    expected = theirs(PROMPTS[0], num_inference_steps=STEPS, generator=generator, **options).images
    assert expected.std() > 0.01
    got = calotype.load(folder, backend="eager")(PROMPTS[0], steps=STEPS, seed=11, **options).images
    assert psnr(got, expected) >= 60


def test_a_plan_of_an_editing_model(folders, pipes, tmp_path):
    built = build(small_spec("onnxruntime", tmp_path / "plan", model=str(folders["edit"])))
    assert built.plan.build["proof"]["psnr"] >= 60
    options = CASES[0][1] | {"width": 64, "height": 64}
    planned = calotype.load(tmp_path / "plan")
    assert psnr(our_images(planned, "edit", **options), our_images(pipes["edit"], "edit", **options)) >= 50


def test_the_upscalers_network_in_eight_bits_and_as_an_engine(folders, tmp_path):
    plan = prepare(folders["pixels"])
    unet = plan.components["unet"]
    ranges = {name: 8.0 for c in candidates(unet.artifact("onnx").path) for name in (c.reads, c.gives)}
    quantize(unet.artifact("onnx").path, tmp_path / "model.onnx", ranges=ranges, dtype="uint8")
    inputs = {b.name: b.shape(plan.profile.sizes(batch=2, height=64, width=64)) for b in unet.inputs}
    arrays = {
        name: np.ones(shape, np.int64 if name == "class_labels" else np.float32) for name, shape in inputs.items()
    }
    outputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, arrays)[0]
    assert np.isfinite(outputs).all()
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    side = Range(min=64, opt=64, max=128)
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=2), height=side, width=side)
    shapes = shapes_of("unet", unet.inputs, profile)
    assert build_engine(trt, unet.artifact("onnx").path, [shapes], EngineOptions(targets=(89,))).engine


def test_the_shapes_of_an_engine_have_a_row_for_each_part_of_the_guidance(folders):
    plan = prepare(folders["edit"], forms=())
    low, usual, high = shapes_of("unet", plan.components["unet"].inputs, plan.profile)["sample"]
    assert (low[0], usual[0], high[0]) == (1, 3, 3 * plan.profile.batch.max)
