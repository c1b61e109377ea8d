"""Perturbed attention guidance on tiny models with random weights: the same images as diffusers' PAG pipelines."""

from functools import cache

import diffusers
import pytest
import torch

import calotype
from calotype.errors import InputError, SourceError
from calotype.export.quality.metrics import psnr
from calotype.plan.image_prompts.layers import SKIP
from calotype.report.like import read_like
from tests.helpers.tiny_models import save_tiny_model, save_vision

PROMPTS = ["a large red circle on a blue background", "a green star"]
SETTINGS = {"width": 96, "height": 64, "output_type": "np"}
SD = "Stable Diffusion"
ATTENTION = 6.0  # times which random weights act as those of a trained model


@pytest.fixture(scope="module")
def folders(demo_folder, sdxl_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("pag")
    folders = {"SD": save_tiny_model(work / "tiny", demo_folder), "XL": sdxl_folder}
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders["SD"] / "unet", low_cpu_mem_usage=False)
    for name, weight in unet.named_parameters():
        if ".attn1." in name and weight.ndim == 2:
            weight.data *= ATTENTION
    unet.save_pretrained(folders["SD"] / "unet")
    return folders


@pytest.fixture(scope="module")
def ours(folders):
    return cache(lambda name, backend: calotype.load(folders[name], pag=True, backend=backend))


def expected(folder, name, layers="mid", **options):
    more = {} if name == "XL" else {"safety_checker": None}
    kind = diffusers.StableDiffusionXLPAGPipeline if name == "XL" else diffusers.StableDiffusionPAGPipeline
    pipe = kind.from_pretrained(
        folder, dtype=torch.float32, low_cpu_mem_usage=False, pag_applied_layers=[layers], **more
    )
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    images = pipe(PROMPTS, generator=generator, num_inference_steps=2, **SETTINGS, **options).images
    assert images.std() > 0.01
    return images


def generated(pipe, **options):
    return pipe(PROMPTS, seed=5, steps=2, **SETTINGS, **options).images


CASES = {
    "mid": {"guidance_scale": 5.0, "pag_scale": 3.0},
    "up, adaptive, rescaled": {
        **{"guidance_scale": 5.0, "pag_scale": 4.0, "pag_adaptive_scale": 0.005, "guidance_rescale": 0.5},
        **{"negative_prompt": ["a ring"] * 2},
    },
    "without other guidance": {"guidance_scale": 1.0, "pag_scale": 3.0},
}


@pytest.mark.parametrize("case", CASES)
def test_images_match_diffusers(ours, folders, figures, case):
    layers = "up" if case.startswith("up") else "mid"
    reference = expected(folders["SD"], "SD", layers, **CASES[case])
    for backend in ("eager", "onnxruntime", "openvino") if layers == "up" else ("eager",):
        got = generated(ours("SD", backend), pag_applied_layers=layers, **CASES[case])
        figures.hold((f"{SD} 1, perturbed attention", "text to image", "dpm++2m-karras"), backend, got, reference)
    plain = generated(ours("SD", "eager"), guidance_scale=CASES[case]["guidance_scale"])
    assert psnr(got, plain) < 50  # it has an effect


def test_xl_matches_diffusers(ours, folders, figures):
    reference = expected(folders["XL"], "XL", **CASES["mid"])
    got = generated(ours("XL", "eager"), **CASES["mid"])
    figures.hold((f"{SD} XL, perturbed attention", "text to image", "euler"), "eager", got, reference)


def test_other_calls_are_as_ever(ours, folders):
    plain = calotype.load(folders["SD"], backend="eager")
    assert psnr(generated(ours("SD", "eager")), generated(plain)) >= 100


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"pag_scale": -1}, "pag_scale"),
        ({"pag_scale": float("nan")}, "pag_scale"),
        ({"pag_scale": 3, "pag_adaptive_scale": 2}, "pag_adaptive_scale"),
        ({"pag_scale": 3, "pag_applied_layers": "middle"}, "pag_applied_layers"),
        ({"pag_scale": 3, "pag_applied_layers": 4}, "pag_applied_layers"),
        ({"pag_scale": 3, "pag_applied_layers": []}, "pag_applied_layers"),
        ({"pag_scale": 3, "guidance_method": "apg"}, "pag_scale"),
        ({"pag_scale": 3, "callback_on_step_end": print}, "pag_scale"),
    ],
)
def test_odd_input(ours, options, argument):
    with pytest.raises(InputError) as refused:
        ours("SD", "eager")(PROMPTS[0], **options)
    assert refused.value.argument == argument


def test_a_model_that_was_not_opened_for_it_says_how(fake, sd21_folder, tmp_path):
    with pytest.raises(InputError, match="pag=True") as refused:
        fake(PROMPTS[0], pag_scale=3)
    assert refused.value.argument == "pag_scale"
    with pytest.raises(InputError) as refused:
        calotype.load(sd21_folder, backend="fake", pag="yes")
    assert refused.value.argument == "pag"


def test_a_png_repeats_it(ours, tmp_path):
    call = {"pag_scale": 2.0, "pag_applied_layers": ["mid", "up"], "pag_adaptive_scale": 0.001, "steps": 1}
    ours("SD", "eager")(PROMPTS[0], width=64, height=64, **call).images[0].save(tmp_path / "a.png")
    recorded = read_like(tmp_path / "a.png", set(), loras_named=False, model_named=True).arguments
    assert {name: recorded[name] for name in call} == call


def test_a_model_without_text_is_refused(demo_folder, tmp_path):
    with pytest.raises(SourceError):
        calotype.load(save_vision(tmp_path / "variation", demo_folder), pag=True, backend="eager")


def test_inputs_are_those_of_its_blocks(ours):
    names = [b.name for b in ours("SD", "eager").plan.components["unet"].inputs if b.name.startswith(SKIP)]
    assert f"{SKIP}_mid_0" in names
