"""Image-to-image and inpainting with the demonstration model: the pictures of diffusers, on both backends."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import InputError
from calotype.export.quality.metrics import psnr

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
PROMPT = "a large green star on a blue background"
SIZE = (96, 64)  # width, height


@pytest.fixture(scope="module")
def image(pipe):
    return pipe("a large red circle on a blue background", seed=7, steps=8, width=96, height=64).images[0]


@pytest.fixture(scope="module")
def mask():
    drawn = Image.new("L", SIZE, 0)
    drawn.paste(255, (12, 10, 61, 50))  # across the borders of latents
    return drawn


@pytest.fixture(scope="module")
def elders(demo_folder):
    kinds = (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
    made = [
        kind.from_pretrained(demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False)
        for kind in kinds
    ]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return dict(zip(("image-to-image", "inpainting"), made, strict=True))


def scheduled(elder, name):
    kind, overrides = SCHEDULERS[name]
    elder.scheduler = kind.from_config(elder.scheduler.config, **{"use_karras_sigmas": False, **overrides})
    return elder


def seeds(*numbers):
    return {"generator": [torch.Generator().manual_seed(n) for n in numbers], "output_type": "np"}


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image(elders, pipes, figures, image, name, strength):
    said = {"image": image, "strength": strength, "guidance_scale": 5.0}
    wanted = scheduled(elders["image-to-image"], name)(PROMPT, num_inference_steps=8, **said, **seeds(5)).images
    assert wanted.std() > 0.05
    for backend, pipe in pipes.items():
        got = pipe(PROMPT, steps=8, seed=5, scheduler=name, output_type="np", **said)
        figures.hold(("demonstration", "image to image", name), backend, got.images, wanted)
        assert got.report.network_calls == int(8 * strength)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_inpainting(elders, pipes, figures, image, mask, name, strength):
    said = {"image": image, "mask_image": mask, "strength": strength, "guidance_scale": 5.0}
    told = {"height": 64, "width": 96, "num_inference_steps": 8}
    wanted = scheduled(elders["inpainting"], name)(PROMPT, **told, **said, **seeds(5)).images
    assert wanted.std() > 0.05
    for backend, pipe in pipes.items():
        got = pipe(PROMPT, steps=8, seed=5, scheduler=name, output_type="np", **said)
        figures.hold(("demonstration", "inpainting", name), backend, got.images, wanted)


def test_latents_of_both(elders, pipes, image, mask):
    for task, more in (("image-to-image", {}), ("inpainting", {"mask_image": mask, "height": 64, "width": 96})):
        said = {"image": image, "strength": 0.5, **more}
        wanted = scheduled(elders[task], "unipc")(
            PROMPT, num_inference_steps=6, guidance_scale=5.0, **said, **seeds(5) | {"output_type": "latent"}
        ).images
        got = pipes["eager"](PROMPT, steps=6, seed=5, scheduler="unipc", output_type="latent", **said).images
        assert psnr(got, wanted.numpy(), peak=float(wanted.max() - wanted.min())) >= 60


def test_a_picture_and_a_mask_for_each_prompt(elders, pipes, image, mask):
    pictures, masks = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], [mask, mask.rotate(180)]
    prompts, said = [PROMPT, "a white cross on a blue background"], {"strength": 0.7, "guidance_scale": 1.0}
    for task, more in (("image-to-image", {}), ("inpainting", {"mask_image": masks, "height": 64, "width": 96})):
        wanted = scheduled(elders[task], "euler-a")(
            prompts, image=pictures, num_inference_steps=6, **more, **said, **seeds(5, 6)
        ).images
        own = {"image": pictures, "mask_image": masks if task == "inpainting" else None, **said}
        got = pipes["eager"](prompts, steps=6, seed=5, scheduler="euler-a", output_type="np", **own).images
        assert psnr(got, wanted) >= 60
        alone = {**own, "image": pictures[1], "mask_image": own["mask_image"] and masks[1]}
        one = pipes["eager"](prompts[1], steps=6, seed=6, scheduler="euler-a", output_type="np", **alone).images
        np.testing.assert_allclose(one, got[1:], atol=1e-4)


def test_what_the_mask_keeps_is_the_pictures_own(pipe, image, mask):
    """Kept latents are kept; the decoder, which sees over the mask's border, changes pixels near it alone."""
    made = np.asarray(pipe(PROMPT, image=image, mask_image=mask, steps=6, seed=5).images[0]) / 255
    through = pipe.decode(pipe.encode(image), output_type="np")[0]
    far = np.ones((64, 96), dtype=bool)
    far[:, :90] = False
    assert psnr(made[far], through[far]) >= 25
    assert psnr(made[16:44, 20:52], through[16:44, 20:52]) < 20


def test_a_preview_of_inpainting_is_the_picture_where_it_is_kept(fake, image, mask):
    for event in fake.stream("x", image=image, mask_image=mask, steps=3, seed=1):
        assert event.preview()[0].size == SIZE


def test_latents_may_be_the_image(fake, image):
    latents = fake("x", steps=2, seed=1, width=96, height=64, output_type="latent").images
    made = fake("x", image=latents, strength=0.5, steps=4, seed=1)
    assert made.images[0].size == SIZE
    assert fake.component("vae_encoder").runner.calls == 0
    with pytest.raises(InputError, match="the latents given are of"):
        fake("x", image=latents, width=128, steps=4)
    with pytest.raises(InputError, match="latents of one image"):
        fake("x", image=latents.repeat(2, axis=0), steps=4)
    with pytest.raises(InputError, match="finite"):
        fake("x", image=latents * np.nan, steps=4)


def test_latents_that_were_handed_on_are_taken_up(fake):
    """Of several pictures of a prompt, in a shape that pictures of four channels might have."""
    said = {"steps": 4, "seed": 1, "num_images": 2, "width": 32, "height": 64}
    for prompt in ("x", ["x", "y"]):
        latents = fake(prompt, denoising_end=0.5, output_type="latent", **said).images
        made = fake(prompt, image=latents, denoising_start=0.5, output_type="latent", **said)
        assert made.images.shape == latents.shape
    with pytest.raises(InputError, match="one for each of 1 prompts or 2 pictures; got 4"):
        fake("x", image=latents, denoising_start=0.5, **said)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mask_image": True}, "mask_image needs a picture"),
        ({"strength": 0.5}, "strength needs a picture"),
        ({"denoising_start": 0.5}, "denoising_start needs a picture"),
        ({"image": True, "strength": 0}, "strength 0 of 10 steps leaves none to paint; give at least 0.1"),
        ({"image": True, "strength": 0.09}, "leaves none to paint"),
        ({"image": True, "strength": 1.1}, "strength must be a number from 0 to 1, got 1.1"),
        ({"image": True, "strength": float("nan")}, "strength must be a number from 0 to 1"),
        ({"image": True, "strength": "half"}, "strength must be a number"),
        ({"image": True, "strength": 0.5, "denoising_start": 0.5}, "give one of them"),
        ({"image": True, "denoising_start": 0.5, "denoising_end": 0.5}, "must come before"),
        ({"denoising_end": 2}, "denoising_end must be a number from 0 to 1"),
        ({"image": "a.png"}, "image: got str"),
        ({"image": []}, "image must be a picture"),
        ({"image": np.full((64, 64, 3), np.nan)}, "from nan"),
        ({"image": True, "mask_image": np.zeros((4, 4, 7))}, r"mask_image.*\[4, 4, 7\]"),
    ],
)
def test_wrong_arguments_are_plain_errors_before_any_work(fake, image, mask, arguments, told):
    pictures = {"image": image, "mask_image": mask}
    given = {name: pictures[name] if value is True else value for name, value in arguments.items()}
    with pytest.raises(InputError, match=told):
        fake.stream("x", steps=10, **given)
    assert fake.component("unet").runner.calls == 0


def test_a_picture_that_was_handed_over_says_so(fake, image, tmp_path):
    from calotype.cli import _made_like

    for i, more in enumerate(({"denoising_end": 0.5}, {"image": image, "denoising_start": 0.5})):
        made = fake("x", steps=4, seed=1, **more).images[0]
        assert "strength" not in made.info
        made.save(tmp_path / f"{i}.png")
        with pytest.raises(InputError, match="one part of a hand-over"):
            _made_like(tmp_path / f"{i}.png", {"image": "a.png"}, loras_said=False)
    whole = {"steps": 4, "seed": 1, "output_type": "latent"}
    np.testing.assert_array_equal(fake("x", denoising_end=1, **whole).images, fake("x", **whole).images)


def test_two_pictures_for_one_prompt_are_told(fake, image, mask):
    with pytest.raises(InputError, match="give one image, or one for each of 1 prompts; got 2"):
        fake.stream("x", image=[image, image])
    with pytest.raises(InputError, match="give one mask_image, or one for each of 1 prompts; got 2"):
        fake.stream("x", image=image, mask_image=[mask, mask])


def test_a_size_that_the_model_does_not_divide_is_rounded_down_and_said(fake, image, mask):
    odd = image.resize((90, 75))
    result = fake("x", image=odd, mask_image=mask.resize((30, 20)), steps=2, seed=1)
    assert result.images[0].size == (80, 64)
    assert "the image of 90 x 75 pixels was resized to 80 x 64" in result.report.notes
    assert "the mask of 30 x 20 pixels was resized to 80 x 64" in result.report.notes
    with pytest.raises(InputError, match="multiple of 16"):
        fake("x", image=odd, width=90)
    assert fake("x", image=image.resize((5, 3)), steps=2).images[0].size == (16, 16)


def test_a_mask_of_nothing_is_said(fake, image):
    notes = fake("x", image=image, mask_image=np.zeros((64, 96), bool), steps=2).report.notes
    assert any("black everywhere" in note for note in notes)
