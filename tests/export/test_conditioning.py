"""Prompts as states of text encoders, texts for the second encoder, and SDXL's sizes: the images of diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like

PROMPTS = ["a blue square", "a small red ring above a green star"]
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 5.0, "width": 64, "height": 32, "output_type": "np"}
SETTINGS |= {"num_images_per_prompt": 2}


def elder(folder, kind):
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def xl(sdxl_folder):
    return calotype.load(sdxl_folder, backend="eager"), elder(sdxl_folder, diffusers.StableDiffusionXLPipeline)


@pytest.fixture(scope="module")
def sd(demo_folder):
    return calotype.load(demo_folder, backend="eager"), elder(demo_folder, diffusers.StableDiffusionPipeline)


def check(pipes, least_change=None, **arguments):
    """Hold our images to diffusers' with the same arguments; they must differ from those of `least_change`."""
    ours, theirs = pipes
    arguments = SETTINGS | arguments
    expected = theirs(generator=torch.Generator().manual_seed(5), **arguments).images
    got = ours(generator=torch.Generator().manual_seed(5), **arguments).images
    assert expected.std() > 0.01
    assert psnr(got, expected) >= 60
    if least_change is not None:
        plain = ours(generator=torch.Generator().manual_seed(5), **SETTINGS | least_change).images
        assert psnr(got, plain) < psnr(got, expected) - 20  # a tiny model changes little
    return got


PLAIN = {"prompt": PROMPTS, "negative_prompt": ["a ring"] * 2}


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_2": ["a red star", "a heart"]},
        {"prompt_2": PROMPTS[::-1], "negative_prompt_2": ["a white star", "a cross"]},
        {"original_size": (512, 256), "target_size": (64, 96), "crops_coords_top_left": (8, 16)},
        {"negative_original_size": (128, 128), "negative_target_size": (512, 512), "crops_coords_top_left": (8, 16)},
        {
            "negative_original_size": (128, 128),
            "negative_target_size": (512, 512),
            "negative_crops_coords_top_left": (4, 4),
        },
    ],
)
def test_texts_and_sizes_of_xl(xl, more):
    if "negative_original_size" not in more:
        check(xl, PLAIN, **PLAIN, **more)
        return
    # Of several images, diffusers gives every other row of the prompts the negative sizes: compare one.
    one = {"prompt": PROMPTS[0], "negative_prompt": "a ring", "num_images_per_prompt": 1}
    check(xl, one, **one, **more)


def test_the_refiner_takes_scores(refiner_folder):
    pipes = (
        calotype.load(refiner_folder, backend="eager"),
        elder(refiner_folder, diffusers.StableDiffusionXLImg2ImgPipeline),
    )
    image = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB")
    arguments = {"prompt": PROMPTS[0], "image": image, "strength": 0.7, "num_images_per_prompt": 1}
    theirs = {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0, "original_size": (512, 512)}
    settings = {name: SETTINGS[name] for name in ("num_inference_steps", "guidance_scale", "output_type")} | arguments
    images = [each(generator=torch.Generator().manual_seed(5), **settings, **theirs).images for each in pipes]
    assert psnr(*images) >= 60


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_states_of_xl(xl, guidance):
    _, theirs = xl
    states, negative, pooled, negative_pooled = theirs.encode_prompt(PROMPTS, negative_prompt=["a ring", ""])
    names = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, "guidance_scale": guidance}
    negatives = {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
    got = check(xl, **names, **negatives)
    by_text = xl[0](
        generator=torch.Generator().manual_seed(5),
        **SETTINGS | PLAIN | {"negative_prompt": ["a ring", ""], "guidance_scale": guidance},
    ).images
    assert psnr(got, by_text) >= 60
    if guidance > 1:
        check(xl, **names)  # zeros
        check(xl, **names, negative_prompt=["a ring", "a heart"])


def test_states_of_sd_and_of_several_chunks(sd):
    ours, theirs = sd
    states, negative = theirs.encode_prompt(PROMPTS, "cpu", 1, True, ["a ring", ""])
    check(sd, prompt_embeds=states, negative_prompt_embeds=negative)
    check(sd, prompt_embeds=states)
    check(sd, prompt=PROMPTS, negative_prompt_embeds=negative)
    longer, longer_negative = (torch.cat([each, each], dim=1) for each in (states, negative))
    check(sd, prompt_embeds=longer, negative_prompt_embeds=longer_negative)
    check(sd, prompt_embeds=states[:, :50], negative_prompt_embeds=negative[:, :50])  # no full chunk
    array = longer.detach().numpy()
    one = ours(prompt_embeds=array, negative_prompt="a ring", seed=5, **SETTINGS)  # the text gets two chunks
    assert one.images.shape == (4, 32, 64, 3)


def test_a_png_has_sizes_and_second_texts(xl, tmp_path):
    arguments = {"prompt_2": "a star", "original_size": (512, 256), "negative_target_size": (64, 64)}
    xl[0]("x", steps=1, width=64, height=64, **arguments).images[0].save(tmp_path / "a.png")
    read = read_like(tmp_path / "a.png", (), loras_named=False, model_named=True).arguments
    assert {
        name: tuple(value) if isinstance(value, list) else value for name, value in read.items() if name in arguments
    } == arguments


STATES, POOLED = np.zeros((1, 77, 176)), np.zeros((1, 24))
WRONG_OF_XL = [
    ({"prompt": "x", "prompt_embeds": STATES}, "prompt_embeds"),
    ({"prompt_embeds": STATES}, "pooled_prompt_embeds"),
    ({"prompt": "x", "pooled_prompt_embeds": POOLED}, "pooled_prompt_embeds"),
    ({"prompt_embeds": np.zeros((1, 77, 100)), "pooled_prompt_embeds": POOLED}, "prompt_embeds"),
    ({"prompt_embeds": np.full((1, 77, 176), np.nan), "pooled_prompt_embeds": POOLED}, "prompt_embeds"),
    ({"prompt_embeds": "x", "pooled_prompt_embeds": POOLED}, "prompt_embeds"),
    ({"prompt_embeds": np.zeros((2, 77, 176)), "pooled_prompt_embeds": np.zeros((3, 24))}, "pooled_prompt_embeds"),
    (
        {"prompt_embeds": np.zeros((1, 50, 176)), "pooled_prompt_embeds": POOLED, "negative_prompt": "x"},
        "negative_prompt_embeds",
    ),
    (
        {"prompt": "x", "negative_prompt": "y", "negative_prompt_embeds": STATES},
        "negative_prompt_embeds",
    ),
    ({"prompt": "x", "prompt_2": 3}, "prompt_2"),
    ({"prompt": "x", "prompt_2": ["a", "b", "c"]}, "prompt_2"),
    ({"prompt": "x", "original_size": 512}, "original_size"),
    ({"prompt": "x", "original_size": (512, float("nan"))}, "original_size"),
    ({"prompt": "x", "target_size": (512, -1)}, "target_size"),
    ({"prompt": "x", "crops_coords_top_left": "ab"}, "crops_coords_top_left"),
    ({"prompt": "x", "aesthetic_score": 7}, "aesthetic_score"),
]


@pytest.mark.parametrize(("arguments", "name"), WRONG_OF_XL)
def test_wrong_arguments_of_xl(xl, arguments, name):
    with pytest.raises(InputError) as refused:
        xl[0].stream(**arguments)
    assert refused.value.argument == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_2", "x"),
        ("negative_prompt_2", "x"),
        ("pooled_prompt_embeds", POOLED),
        ("original_size", (64, 64)),
        ("negative_crops_coords_top_left", (0, 0)),
        ("aesthetic_score", 7),
    ],
)
def test_arguments_of_xl_need_xl(sd, name, value):
    with pytest.raises(InputError) as refused:
        sd[0].stream("x", **{name: value})
    assert refused.value.argument == name
