"""`callback_on_step_end`, `cross_attention_kwargs` and `padding_mask_crop`: the images of diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from tests.helpers.tiny_models import save_lora

PROMPT = "a large red circle on a blue background"
SETTINGS = {"num_inference_steps": 4, "guidance_scale": 5.0, "width": 64, "height": 64, "output_type": "np"}
SCHEDULERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-a": diffusers.EulerAncestralDiscreteScheduler,
    "dpm++2m": diffusers.DPMSolverMultistepScheduler,
}


@pytest.fixture(scope="module")
def elder(tiny_folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(elder, tiny_pipe, scheduler="euler", **arguments):
    """The images of diffusers and ours, with one generator for two images."""
    elder.scheduler = SCHEDULERS[scheduler].from_config(elder.scheduler.config, use_karras_sigmas=False)
    arguments = {**SETTINGS, "num_images_per_prompt": 2, **arguments}
    expected = elder(PROMPT, generator=torch.Generator().manual_seed(4), **arguments).images
    result = tiny_pipe(PROMPT, generator=torch.Generator().manual_seed(4), scheduler=scheduler, **arguments)
    return expected, result


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_changed_latents_take_effect(elder, tiny_pipe, scheduler):
    seen = []

    def halve(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), tuple(tensors["latents"].shape), float(tensors["latents"].mean())))
        if step == 2:
            tensors["latents"] = tensors["latents"] * 0.5
        return tensors

    expected, result = both(elder, tiny_pipe, scheduler, callback_on_step_end=halve)
    assert psnr(result.images, expected) >= 60
    theirs, ours = seen[:4], seen[4:]
    np.testing.assert_allclose(np.array([each[:2] for each in ours]), np.array([each[:2] for each in theirs]))
    assert [each[2] for each in ours] == [(2, 4, 8, 8)] * 4
    np.testing.assert_allclose([each[3] for each in ours], [each[3] for each in theirs], atol=1e-4)


def test_a_callback_without_changes_changes_nothing(tiny_pipe):
    plain = tiny_pipe(PROMPT, seed=3, scheduler="dpm++2m", **SETTINGS).images
    watched = tiny_pipe(PROMPT, seed=3, scheduler="dpm++2m", callback_on_step_end=lambda *_: None, **SETTINGS)
    assert psnr(watched.images, plain) >= 80
    assert any("callback" in note for note in watched.report.notes)


@pytest.mark.parametrize("way", ["attribute", "pipeline", "returned"])
def test_interruption_decodes_the_latents_of_its_step(elder, tiny_pipe, way):
    def interrupt(pipe, step, timestep, tensors):
        if step == 1:
            if way == "attribute" or not hasattr(pipe, "plan"):
                pipe._interrupt = True
            elif way == "pipeline":
                tiny_pipe._interrupt = True
            else:
                return {"interrupt": True}
        return tensors

    expected, result = both(elder, tiny_pipe, callback_on_step_end=interrupt)
    assert psnr(result.images, expected) >= 60
    assert any("interrupted" in note for note in result.report.notes)
    events = list(tiny_pipe.stream(PROMPT, seed=1, callback_on_step_end=interrupt, **SETTINGS))
    assert len(events) == 2
    assert events[-1].result is not None
    assert len(list(tiny_pipe.stream(PROMPT, seed=1, **SETTINGS))) == 4  # the next call is not interrupted


def test_the_embeddings_and_the_guidance_change(elder, tiny_pipe):
    """The first example of diffusers' guide: guidance ends halfway."""

    def cut_off(pipe, step, timestep, tensors):
        if step == int(pipe.num_timesteps * 0.5):
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    names = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected, result = both(elder, tiny_pipe, callback_on_step_end=cut_off, **names)
    assert psnr(result.images, expected) >= 60
    plain, _ = both(elder, tiny_pipe)
    assert psnr(result.images, plain) < psnr(result.images, expected) - 20  # a tiny model changes little


def test_a_callback_of_diffusers(elder, tiny_pipe):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.4)
    expected, result = both(elder, tiny_pipe, callback_on_step_end=callback, num_images_per_prompt=1)
    assert psnr(result.images, expected) >= 60


def test_a_callback_while_a_mask_preserves_a_part(elder, tiny_pipe):
    pipe = diffusers.StableDiffusionInpaintPipeline(**elder.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (12, 10, 41, 50))

    def shift(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] + 0.1}

    image = tiny_pipe(PROMPT, seed=7, steps=2, width=64, height=64).images[0]
    inputs = {"image": image, "mask_image": mask, "strength": 0.75, "callback_on_step_end": shift}
    expected, result = both(pipe, tiny_pipe, "euler-a", **inputs)
    assert psnr(result.images, expected) >= 60


def test_the_scale_of_loras(elder, tiny_pipe, tiny_folder, tmp_path):
    lora = save_lora(tiny_folder, tmp_path / "lora.safetensors", ("unet", "text_encoder"))
    elder.load_lora_weights(lora)
    try:
        tiny_pipe.set_lora(lora)
        for scale in (0.5, 0.0):
            expected, result = both(elder, tiny_pipe, cross_attention_kwargs={"scale": scale})
            assert psnr(result.images, expected) >= 60
            assert result.report.loras[0][1] == scale
        assert tiny_pipe.loras[0][1] == 1
        full = tiny_pipe(PROMPT, seed=4, **SETTINGS)
        assert psnr(tiny_pipe(PROMPT, seed=4, lora_scale=0.5, **SETTINGS).images, full.images) < 90
        stream = tiny_pipe.stream(PROMPT, seed=4, **SETTINGS)
        next(stream)
        with pytest.raises(InputError, match="stream"):
            tiny_pipe(PROMPT, lora_scale=0.5, **SETTINGS)
    finally:
        elder.unload_lora_weights()
        stream.close()
        tiny_pipe.set_lora(None)
    noted = tiny_pipe(PROMPT, seed=4, lora_scale=0.5, **SETTINGS).report.notes
    assert any("no LoRA" in note for note in noted)


@pytest.mark.parametrize("box", [(40, 30, 60, 50), (0, 0, 15, 60), (70, 50, 96, 64), (2, 30, 94, 34), (5, 5, 6, 6)])
def test_only_the_area_around_the_mask(elder, tiny_pipe, box):
    pipe = diffusers.StableDiffusionInpaintPipeline(**elder.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB")
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, box)
    inputs = {"image": image, "mask_image": mask, "padding_mask_crop": 4, "strength": 1.0}
    inputs |= {"output_type": "pil", "width": 64, "height": 64, "num_inference_steps": 1, "num_images_per_prompt": 1}
    expected, result = both(pipe, tiny_pipe, **inputs)
    got, wanted = (np.asarray(images[0]) / 255 for images in (result.images, expected))
    assert got.shape == (64, 96, 3)
    assert psnr(got, wanted) >= 60
    result.images[0].save("/dev/null", format="PNG")
    assert result.images[0].info["padding_mask_crop"] == "4"


IMAGE = Image.new("RGB", (64, 64), "red")
MASK = Image.new("L", (64, 64), 255)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"callback_on_step_end": 3}, "callback_on_step_end"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["x"]},
            "callback_on_step_end_tensor_inputs",
        ),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": "latents"},
            "callback_on_step_end_tensor_inputs",
        ),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["add_time_ids"]},
            "callback_on_step_end_tensor_inputs",
        ),
        ({"cross_attention_kwargs": {"gligen": 1}}, "cross_attention_kwargs"),
        ({"cross_attention_kwargs": 0.5}, "cross_attention_kwargs"),
        ({"cross_attention_kwargs": {"scale": float("nan")}}, "lora_scale"),
        ({"cross_attention_kwargs": {"scale": 1}, "lora_scale": 1}, "cross_attention_kwargs"),
        ({"padding_mask_crop": 8}, "padding_mask_crop"),
        ({"padding_mask_crop": 8, "image": IMAGE}, "padding_mask_crop"),
        ({"padding_mask_crop": -1, "image": IMAGE, "mask_image": MASK}, "padding_mask_crop"),
        ({"padding_mask_crop": 0.5, "image": IMAGE, "mask_image": MASK}, "padding_mask_crop"),
        ({"padding_mask_crop": 8, "image": IMAGE, "mask_image": MASK, "output_type": "np"}, "padding_mask_crop"),
        ({"padding_mask_crop": 8, "image": IMAGE, "mask_image": MASK.point(lambda _: 0)}, "padding_mask_crop"),
    ],
)
def test_wrong_arguments_raise_before_the_work(fake, arguments, name):
    with pytest.raises(InputError) as refused:
        fake.stream("x", **arguments)
    assert refused.value.argument == name
    assert fake.component("unet").runner.calls == 0


@pytest.mark.parametrize(
    "returned",
    [3, {"latents": 3}, {"latents": np.zeros((1, 4, 2, 2))}, {"latents": np.full((1, 4, 16, 16), np.nan)}, {"x": 1}],
)
def test_wrong_changes_raise(fake, returned):
    with pytest.raises(InputError) as refused:
        fake("x", steps=2, callback_on_step_end=lambda *_: returned)
    assert refused.value.argument == "callback_on_step_end"
