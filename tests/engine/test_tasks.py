"""Image-to-image and inpainting with the demonstration model: parity with diffusers on every backend."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like
from tests.helpers.parity import half_of

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
TASKS = {"image-to-image": "image to image", "inpainting": "inpainting"}  # diffusers' pipeline: row of the table
CASES = [(name, task, strength) for name in SCHEDULERS for task in TASKS for strength in (0.6, 1.0)]
PROMPT = "a large green star on a blue background"
SIZE = (96, 64)  # width, height


@pytest.fixture(scope="module")
def image(pipe):
    return pipe("a large red circle on a blue background", seed=7, steps=8, width=96, height=64).images[0]


@pytest.fixture(scope="module")
def mask():
    drawn = Image.new("L", SIZE, 0)
    drawn.paste(255, (12, 10, 61, 50))  # does not align with latents
    return drawn


@pytest.fixture(scope="module")
def diffusers_pipes(demo_folder):
    kinds = (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
    loaded = [
        kind.from_pretrained(demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False)
        for kind in kinds
    ]
    for pipe in loaded:
        pipe.set_progress_bar_config(disable=True)
    return dict(zip(("image-to-image", "inpainting"), loaded, strict=True))


def scheduled(diffusers_pipe, name):
    kind, overrides = SCHEDULERS[name]
    diffusers_pipe.scheduler = kind.from_config(
        diffusers_pipe.scheduler.config, **{"use_karras_sigmas": False, **overrides}
    )
    return diffusers_pipe


def seeds(*numbers):
    return {"generator": [torch.Generator().manual_seed(n) for n in numbers], "output_type": "np"}


def pytest_generate_tests(metafunc):
    """Compare every case for the table of `--parity`, else every pair of name, task and strength."""
    if "strength" in metafunc.fixturenames:
        metafunc.parametrize(
            ("name", "task", "strength"), CASES if metafunc.config.getoption("--parity") else half_of(CASES)
        )


def test_images_match_diffusers(diffusers_pipes, pipes, figures, image, mask, name, task, strength):
    arguments = {"image": image, "strength": strength, "guidance_scale": 5.0}
    theirs = {"num_inference_steps": 8}
    if task == "inpainting":
        arguments |= {"mask_image": mask}
        theirs |= {"height": 64, "width": 96}
    expected = scheduled(diffusers_pipes[task], name)(PROMPT, **theirs, **arguments, **seeds(5)).images
    assert expected.std() > 0.05
    for backend, pipe in pipes.items():
        got = pipe(PROMPT, steps=8, seed=5, scheduler=name, output_type="np", **arguments)
        figures.hold(("demonstration", TASKS[task], name), backend, got.images, expected)
        assert got.report.network_calls == int(8 * strength)


def test_latents_match_diffusers(diffusers_pipes, pipes, image, mask):
    for task, more in (("image-to-image", {}), ("inpainting", {"mask_image": mask, "height": 64, "width": 96})):
        arguments = {"image": image, "strength": 0.5, **more}
        expected = scheduled(diffusers_pipes[task], "unipc")(
            PROMPT, num_inference_steps=6, guidance_scale=5.0, **arguments, **seeds(5) | {"output_type": "latent"}
        ).images
        got = pipes["eager"](PROMPT, steps=6, seed=5, scheduler="unipc", output_type="latent", **arguments).images
        assert psnr(got, expected.numpy(), peak=float(expected.max() - expected.min())) >= 60


def test_an_image_and_a_mask_for_each_prompt(diffusers_pipes, pipes, image, mask):
    inputs, masks = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], [mask, mask.rotate(180)]
    prompts, arguments = [PROMPT, "a white cross on a blue background"], {"strength": 0.7, "guidance_scale": 1.0}
    for task, more in (("image-to-image", {}), ("inpainting", {"mask_image": masks, "height": 64, "width": 96})):
        expected = scheduled(diffusers_pipes[task], "euler-a")(
            prompts, image=inputs, num_inference_steps=6, **more, **arguments, **seeds(5, 6)
        ).images
        ours = {"image": inputs, "mask_image": masks if task == "inpainting" else None, **arguments}
        got = pipes["eager"](prompts, steps=6, seed=5, scheduler="euler-a", output_type="np", **ours).images
        assert psnr(got, expected) >= 60
        single = {**ours, "image": inputs[1], "mask_image": ours["mask_image"] and masks[1]}
        one = pipes["eager"](prompts[1], steps=6, seed=6, scheduler="euler-a", output_type="np", **single).images
        np.testing.assert_allclose(one, got[1:], atol=1e-4)


def test_the_black_part_of_a_mask_is_kept(pipe, image, mask):
    """Latents outside the mask are kept. The decoder changes only pixels near the border of the mask."""
    result = np.asarray(pipe(PROMPT, image=image, mask_image=mask, steps=6, seed=5).images[0]) / 255
    through = pipe.decode(pipe.encode(image), output_type="np")[0]
    far = np.ones((64, 96), dtype=bool)
    far[:, :90] = False
    assert psnr(result[far], through[far]) >= 25
    assert psnr(result[16:44, 20:52], through[16:44, 20:52]) < 20


def test_a_preview_of_inpainting_has_the_size_of_the_image(fake, image, mask):
    for event in fake.stream("x", image=image, mask_image=mask, steps=3, seed=1):
        assert event.preview()[0].size == SIZE


def test_latents_may_be_the_image(fake, image):
    latents = fake("x", steps=2, seed=1, width=96, height=64, output_type="latent").images
    result = fake("x", image=latents, strength=0.5, steps=4, seed=1)
    assert result.images[0].size == SIZE
    assert fake.component("vae_encoder").runner.calls == 0
    with pytest.raises(InputError, match="latents of"):
        fake("x", image=latents, width=128, steps=4)
    with pytest.raises(InputError, match="latents of one"):
        fake("x", image=latents.repeat(2, axis=0), steps=4)
    with pytest.raises(InputError, match="finite"):
        fake("x", image=latents * np.nan, steps=4)


def test_a_handoff_of_latents(fake):
    """Several images of a prompt, whose latents have the shape of images with four channels."""
    arguments = {"steps": 4, "seed": 1, "num_images": 2, "width": 32, "height": 64}
    for prompt in ("x", ["x", "y"]):
        latents = fake(prompt, denoising_end=0.5, output_type="latent", **arguments).images
        result = fake(prompt, image=latents, denoising_start=0.5, output_type="latent", **arguments)
        assert result.images.shape == latents.shape
    with pytest.raises(InputError, match="got 4"):
        fake("x", image=latents, denoising_start=0.5, **arguments)


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ({"mask_image": True}, "mask_image"),
        ({"strength": 0.5}, "strength"),
        ({"denoising_start": 0.5}, "denoising_start"),
        ({"image": True, "strength": 0}, "strength >= 0.1"),
        ({"image": True, "strength": 0.09}, "strength"),
        ({"image": True, "strength": 1.1}, "strength"),
        ({"image": True, "strength": float("nan")}, "strength"),
        ({"image": True, "strength": "half"}, "strength"),
        ({"image": True, "strength": 0.5, "denoising_start": 0.5}, "denoising_start"),
        ({"image": True, "denoising_start": 0.5, "denoising_end": 0.5}, "must come before"),
        ({"denoising_end": 2}, "denoising_end"),
        ({"image": "a.png"}, "image"),
        ({"image": []}, "image must be"),
        ({"image": np.full((64, 64, 3), np.nan)}, "nan"),
        ({"image": True, "mask_image": np.zeros((4, 4, 7))}, "mask_image"),
    ],
)
def test_wrong_arguments_raise_before_the_work(fake, image, mask, arguments, keyword):
    inputs = {"image": image, "mask_image": mask}
    values = {name: inputs[name] if value is True else value for name, value in arguments.items()}
    with pytest.raises(InputError, match=keyword):
        fake.stream("x", steps=10, **values)
    assert fake.component("unet").runner.calls == 0


def test_like_refuses_an_image_of_a_handoff(fake, image, tmp_path):
    for i, more in enumerate(({"denoising_end": 0.5}, {"image": image, "denoising_start": 0.5})):
        result = fake("x", steps=4, seed=1, **more).images[0]
        assert "strength" not in result.info
        result.save(tmp_path / f"{i}.png")
        with pytest.raises(InputError, match="handoff"):
            read_like(tmp_path / f"{i}.png", ("image",), loras_named=False, model_named=False)
    full = {"steps": 4, "seed": 1, "output_type": "latent"}
    np.testing.assert_array_equal(fake("x", denoising_end=1, **full).images, fake("x", **full).images)


def test_two_images_for_one_prompt_raise(fake, image, mask):
    with pytest.raises(InputError, match="one image"):
        fake.stream("x", image=[image, image])
    with pytest.raises(InputError, match="one mask_image"):
        fake.stream("x", image=image, mask_image=[mask, mask])


def test_a_size_is_rounded_down_with_a_note(fake, image, mask):
    odd = image.resize((90, 75))
    result = fake("x", image=odd, mask_image=mask.resize((30, 20)), steps=2, seed=1)
    assert result.images[0].size == (80, 64)
    assert "the image of 90 x 75 pixels was resized to 80 x 64" in result.report.notes
    assert "the mask of 30 x 20 pixels was resized to 80 x 64" in result.report.notes
    with pytest.raises(InputError, match="multiple of 16"):
        fake("x", image=odd, width=90)
    assert fake("x", image=image.resize((5, 3)), steps=2).images[0].size == (16, 16)


def test_a_note_reports_a_black_mask(fake, image):
    notes = fake("x", image=image, mask_image=np.zeros((64, 96), bool), steps=2).report.notes
    assert any("black everywhere" in note for note in notes)
