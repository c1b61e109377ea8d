"""Hires fix: the second pass is a second call with the enlarged image, on which both passes report and count."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.errors import Cancelled, InputError
from calotype.export.quality.metrics import psnr
from calotype.plan.profile import Range
from calotype.report.like import read_like
from calotype.request.resolved import resolve
from calotype.stages.hires import resize_latents

PROMPT = "a large red circle on a blue background"
SMALL = {"width": 64, "height": 48, "seed": [3, 9], "num_images": 2, "scheduler": "euler"}


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


def test_it_is_a_second_call_with_the_image_resized_by_lanczos(eager):
    hires = {"hires": 1.5, "hires_upscaler": "lanczos", "hires_strength": 0.5}
    result = eager(PROMPT, steps=4, output_type="np", **SMALL, **hires)
    first = eager(PROMPT, steps=4, output_type="np", **SMALL).images
    larger = [np.stack([enlarged(image[..., i], 96, 64) for i in range(3)], -1).clip(0, 1) for image in first]
    seeds = {"seed": SMALL["seed"], "scheduler": "euler"}
    expected = eager([PROMPT] * 2, image=larger, steps=4, strength=0.5, output_type="np", **seeds).images
    assert result.images.shape == (2, 64, 96, 3)  # 72 pixels are no multiple of 16
    assert psnr(result.images, expected) > 90
    assert psnr(first, eager(PROMPT, steps=4, output_type="np", **SMALL).images) > 90


def enlarged(plane, width, height):
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))


def test_it_is_a_second_call_with_resized_latents(eager):
    hires = {"hires": 2, "hires_upscaler": "Latent", "hires_steps": 3, "hires_strength": 0.6}
    got = eager(PROMPT, steps=2, output_type="latent", **SMALL, **hires).images
    first = eager(PROMPT, steps=2, output_type="latent", **SMALL).images
    seeds = {"seed": SMALL["seed"], "scheduler": "euler"}
    larger = resize_latents(first, 12, 16)
    expected = eager([PROMPT] * 2, image=larger, steps=5, strength=0.6, output_type="latent", **seeds).images
    assert got.shape == (2, 4, 12, 16)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_resized_latents_are_those_of_torch():
    import torch

    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 8), dtype=np.float32)
    options = {"size": (12, 20), "mode": "bilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents), **options).numpy()
    np.testing.assert_allclose(resize_latents(latents, 12, 20), expected, atol=1e-5)


def test_events_count_over_both_passes(fake):
    events = list(fake.stream("x", steps=4, seed=1, hires=1.5, hires_strength=0.5))
    assert [(event.step, event.total) for event in events] == [(i, 6) for i in range(1, 7)]
    assert [event.result is not None for event in events] == [False] * 5 + [True]
    assert events[-1].result.images[0].size == (192, 192)


def test_a_preview_has_the_size_of_its_pass(fake):
    events = fake.stream("x", steps=2, seed=1, hires=1.5, hires_steps=1)
    assert [event.preview()[0].size for event in events] == [(128, 128), (128, 128), (192, 192)]


def test_the_report_has_both_passes(fake):
    report = fake("x", steps=10, seed=1, hires=1.5, hires_steps=3, hires_strength=0.5).report
    assert [vars(each) for each in report.passes] == [
        {"width": 128, "height": 128, "network_calls": 10},
        {"width": 192, "height": 192, "network_calls": 3},
    ]
    assert (report.steps, report.network_calls) == (10, 13)
    assert {"steps", "hires enlarge", "hires encode", "hires steps", "hires decode"} <= set(report.seconds)
    assert "192x192 in 3" in str(report)
    assert fake("x", steps=2, seed=1).report.passes == ()


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_png_repeats_it(fake, tmp_path, upscaler):
    image = fake("x", steps=3, seed=5, width=64, height=64, hires=1.5, hires_upscaler=upscaler).images[0]
    image.info["backend"] = "eager"
    image.save(tmp_path / "a.png")
    like = read_like(tmp_path / "a.png", (), loras_named=False, model_named=False)
    assert (like.arguments["width"], like.arguments["hires"]) == (64, 1.5)
    again = fake(**like.arguments).images[0]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    assert "hires" not in fake("x", steps=1, seed=1).images[0].info


def test_it_takes_an_image(fake):
    image = Image.new("RGB", (96, 64), "red")
    result = fake("x", image=image, strength=0.5, steps=4, seed=1, hires=2, hires_steps=1)
    assert (result.images[0].size, result.report.network_calls) == ((192, 128), 3)


def test_a_controlnet_sees_its_image_at_both_sizes():
    pipe = calotype.load("demo", controlnet="demo-canny", backend="fake")
    edges = Image.effect_noise((300, 300), 80)
    plan, tokenizers = pipe.plan, pipe._generator._tokenizers
    request = resolve("x", {"control_image": edges, "width": 128, "height": 128, "hires": 1.5}, plan, tokenizers)
    assert request.controls[0].images.shape == (1, 3, 128, 128)
    assert request.second_pass().controls[0].images.shape == (1, 3, 192, 192)
    assert pipe("x", control_image=edges, steps=2, seed=1, hires=1.5, width=128, height=128).images[0].width == 192


def test_it_can_be_cancelled_in_the_second_pass(fake):
    with pytest.raises(Cancelled) as caught:
        for event in fake.stream("x", steps=4, seed=1, hires=1.5, hires_steps=3):
            if event.step == 5:
                fake.cancel()
    assert (caught.value.step, caught.value.total) == (5, 7)


IMAGE = Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        *(({"hires": value}, "hires") for value in (0.5, 0, -1, float("nan"), float("inf"), 9, True, "2", [2])),
        ({"hires": 8, "width": 1024, "height": 512}, "hires"),
        *(({"hires": 2, "hires_strength": value}, "hires_strength") for value in (0, -1, 1.1, float("nan"), "x")),
        *(({"hires": 2, "hires_steps": value}, "hires_steps") for value in (0, 1001, 1.5, "x", True)),
        ({"hires": 2, "hires_steps": 600, "hires_strength": 0.1}, "hires_steps"),
        *(({"hires": 2, "hires_upscaler": value}, "hires_upscaler") for value in ("", 3, ["latent"])),
        ({"hires": 2, "image": IMAGE, "mask_image": IMAGE}, "hires"),
        ({"hires": 2, "denoising_end": 0.8}, "hires"),
        ({"hires_upscaler": "latent"}, "hires_upscaler"),
        ({"hires_strength": 0.5}, "hires_strength"),
        ({"hires_steps": 5}, "hires_steps"),
    ],
)
def test_odd_arguments_raise_before_the_work(fake, arguments, name):
    with pytest.raises(InputError, match=name) as caught:
        fake("x", steps=2, **arguments)
    assert caught.value.argument == name
    assert fake.component("unet").runner.calls == 0


def test_a_plan_that_is_too_small_names_the_option_of_its_build(fake):
    side = Range(min=64, opt=128, max=192)
    plan = replace(fake.plan, build={"backend": "fake"}, profile=replace(fake.plan.profile, height=side, width=side))
    tokenizers = fake._generator._tokenizers
    with pytest.raises(InputError, match="--height 64:128:256 --width 64:128:256") as caught:
        resolve("x", {"hires": 2}, plan, tokenizers)
    assert caught.value.argument == "hires"
    assert resolve("x", {"hires": 1.5}, plan, tokenizers).hires.width == 192


def test_memory_is_checked_for_the_larger_size(fake, monkeypatch):
    from calotype import generator

    monkeypatch.setattr(generator, "available_bytes", lambda: 64 << 20)
    fake("x", steps=1, seed=1, hires=1, hires_steps=1)
    with pytest.raises(InputError, match="memory"):
        fake("x", steps=1, seed=1, hires=8, hires_steps=1)
    assert fake.component("unet").runner.calls == 2
