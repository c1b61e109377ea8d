"""`generator=`, `latents=`, `output_type="pt"` and the names of diffusers: its images, with the same generators."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like
from calotype.request.diffusers_names import ALIASES

PROMPTS = ["a large red circle on a blue background", "a large green star on a white background"]
SIZE = {"width": 64, "height": 64}
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (12, 10, 41, 50))
TASKS = {
    "text": diffusers.StableDiffusionPipeline,
    "image": diffusers.StableDiffusionImg2ImgPipeline,
    "inpainting": diffusers.StableDiffusionInpaintPipeline,
}


@pytest.fixture(scope="module")
def elders(tiny_folder):
    base = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    base.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(base.scheduler.config)
    elders = {name: kind(**base.components, requires_safety_checker=False) for name, kind in TASKS.items()}
    for pipe in elders.values():
        pipe.set_progress_bar_config(disable=True)
    return elders


@pytest.fixture(scope="module")
def image(tiny_pipe):
    return tiny_pipe(PROMPTS[0], seed=7, steps=2, **SIZE).images[0]


def new(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


GENERATORS = {"one": lambda: new(5)[0], "a list": lambda: new(5, 2**40 + 6, 7, 8)}


@pytest.mark.filterwarnings("ignore:You have passed:FutureWarning")
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("task", TASKS)
def test_a_generator_gives_the_images_of_diffusers(elders, tiny_pipe, image, task, kind):
    """Two prompts with two images each, and a sampler that draws noise."""
    inputs = {"text": SIZE, "image": {"image": image}, "inpainting": {"image": image, "mask_image": MASK, **SIZE}}[task]
    arguments = {"num_inference_steps": 4, "num_images_per_prompt": 2, "guidance_scale": 1.0, **inputs}
    if task != "text":
        arguments["strength"] = 0.7
    theirs, ours = GENERATORS[kind](), GENERATORS[kind]()
    expected = elders[task](PROMPTS, generator=theirs, output_type="pt", **arguments).images
    result = tiny_pipe(PROMPTS, generator=ours, output_type="pt", scheduler="euler-a", **arguments)
    assert isinstance(result.images, torch.Tensor)
    assert psnr(result.images.numpy(), expected.numpy()) >= 60
    states = [each.get_state() for each in ([theirs, ours] if kind == "one" else [theirs[0], ours[0]])]
    assert torch.equal(*states)  # the caller's generator advanced as with diffusers


def test_an_image_for_each_prompt_draws_as_diffusers(elders, tiny_pipe, image):
    images = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    arguments = {"num_inference_steps": 4, "strength": 0.7, "guidance_scale": 1.0}
    for task, more in (("image", {}), ("inpainting", {"mask_image": [MASK, MASK.rotate(180)], **SIZE})):
        both = arguments | more
        expected = elders[task](PROMPTS, image=images, generator=new(5)[0], output_type="np", **both).images
        got = tiny_pipe(
            PROMPTS, image=images, generator=new(5)[0], output_type="np", scheduler="euler-a", **both
        ).images
        assert psnr(got, expected) >= 60


def test_a_generator_continues_where_it_is(elders, tiny_pipe):
    theirs, ours = new(3, 3)
    arguments = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "np", **SIZE}
    for _ in range(2):
        expected = elders["text"](PROMPTS[0], generator=theirs, **arguments).images
        result = tiny_pipe(PROMPTS[0], generator=ours, scheduler="euler-a", **arguments)
        assert psnr(result.images, expected) >= 60
        assert result.seeds == (3,)


def test_latents_are_the_initial_noise(elders, tiny_pipe):
    noise = torch.randn(4, 4, 8, 8, generator=new(9)[0])
    arguments = {"num_inference_steps": 3, "num_images_per_prompt": 2, "guidance_scale": 4.0, "output_type": "np"}
    expected = elders["text"](PROMPTS, latents=noise, generator=new(5)[0], **SIZE, **arguments).images
    for latents in (noise, noise.numpy()):
        got = tiny_pipe(
            PROMPTS, latents=latents, generator=new(5)[0], scheduler="euler-a", **arguments
        ).images  # its size
        assert psnr(got, expected) >= 60
    one = tiny_pipe(PROMPTS, latents=noise[:1], seed=1, scheduler="ddim", **arguments).images
    np.testing.assert_allclose(one[0], one[1], atol=1e-5)


def test_seeds_and_new_generators_give_one_image(fake):
    by_seed = fake(PROMPTS, seed=[3, 4], steps=2, scheduler="euler-a", output_type="np")
    by_generator = fake(PROMPTS, generator=new(3, 4), steps=2, scheduler="euler-a", output_type="np")
    np.testing.assert_allclose(by_seed.images, by_generator.images, atol=1e-5)
    assert by_generator.seeds == (3, 4)


def test_a_png_says_what_it_does_not_have(fake, tmp_path):
    used = new(3)[0]
    torch.randn(1, generator=used)
    noise = np.zeros((1, 4, 16, 16), np.float32)
    for i, (more, word) in enumerate(
        [({"generator": new(3)}, None), ({"generator": used}, "generator"), ({"latents": noise}, "latents")]
    ):
        fake("x", steps=1, **more).images[0].save(tmp_path / f"{i}.png")
        if word is None:
            settings = read_like(tmp_path / f"{i}.png", (), loras_named=False, model_named=False)
            assert settings.arguments["seed"] == 3
        else:
            with pytest.raises(InputError, match=word):
                read_like(tmp_path / f"{i}.png", (), loras_named=False, model_named=False)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"generator": 7}, "generator"),
        ({"generator": []}, "generator"),
        ({"generator": [None]}, "generator"),
        ({"generator": new(1, 2, 3)}, "generator"),
        ({"generator": new(1)}, "generator"),
        ({"generator": new(1) * 2}, "generator"),
        ({"generator": new(1)[0], "seed": 1}, "generator"),
        ({"latents": "noise"}, "latents"),
        ({"latents": np.zeros((4, 8, 8))}, "latents"),
        ({"latents": np.zeros((3, 4, 8, 8))}, "latents"),
        ({"latents": np.zeros((2, 3, 8, 8))}, "latents"),
        ({"latents": np.full((2, 4, 8, 8), np.nan)}, "latents"),
        ({"latents": np.zeros((2, 4, 8, 8)), "width": 128}, "latents"),
        ({"latents": np.zeros((2, 4, 8, 8), complex)}, "latents"),
        ({"num_inference_steps": 3, "steps": 3}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images"),
        ({"output_type": "torch"}, "output_type"),
        ({"return_dict": False}, "return_dict"),
        ({"callback": print}, "callback"),
    ],
)
def test_wrong_arguments_raise_before_the_work(fake, arguments, name):
    with pytest.raises(InputError) as refused:
        fake.stream(PROMPTS, **arguments)
    assert refused.value.argument == name
    assert fake.component("unet").runner.calls == 0


def test_aliases_are_no_names_of_arguments(fake):
    from calotype.request.arguments.argument import table
    from calotype.request.request import Request

    names = {name for name, _, _ in table(Request)}
    assert not ALIASES.keys() & names
    assert {alias.name for alias in ALIASES.values()} <= names
