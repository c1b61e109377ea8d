"""The text of AUTOMATIC1111's web UI: another program reads ours, and `--like` reads its own."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager
from typer.testing import CliRunner

from calotype import cli, scheduler_names
from calotype.errors import CalotypeError, InputError
from calotype.images.png import image_from_pixels
from calotype.report.infotext import SAMPLERS, parse_infotext, to_infotext
from calotype.report.like import read_like
from calotype.sampling.schedulers import spec_from
from tests.helpers.cores import cpu_limit

THEIRS = """masterpiece, a (red:1.2) cat <lora:detail:0.7>
by the sea
Negative prompt: ugly, bad: hands
Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 3918362478, Size: 512x768, """
THEIRS += """Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, ENSD: 31337, Version: v1.9.4"""


def png(path, text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


def like(path, options=(), *, loras_named=False, model_named=True):
    return read_like(path, options, loras_named=loras_named, model_named=model_named)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_another_program_reads_our_settings(fake, suffix, tmp_path):
    settings = {"negative_prompt": "ugly, blue", "scheduler": "dpm++2m-karras", "steps": 3, "seed": 2**64 - 1}
    fake("a cat, on a mat\nat night", **settings).images[0].save(tmp_path / f"a.{suffix}")
    (sampler,) = ParserManager().parse(tmp_path / f"a.{suffix}").samplers
    assert [prompt.value for prompt in sampler.prompts] == ["a cat, on a mat\nat night"]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["ugly, blue"]
    assert (sampler.name, sampler.model.name) == ("DPM++ 2M", "demo")
    expected = {"scheduler": "Karras", "seed": str(2**64 - 1), "steps": "3", "cfg_scale": "5"}
    assert sampler.parameters == expected


def test_like_reads_the_web_ui(tmp_path):
    result = like(png(tmp_path / "a.png", THEIRS))
    assert result.arguments == {
        "prompt": "masterpiece, a (red:1.2) cat \nby the sea",
        "negative_prompt": "ugly, bad: hands",
        **{"steps": 25, "scheduler": "dpm++2m-karras", "guidance_scale": 6.5, "seed": 3918362478},
        **{"width": 512, "height": 768, "clip_skip": 1},
    }
    notes = "\n".join(result.notes)
    for word in ("ENSD 31337", "detail:0.7", "GPU"):
        assert word in notes
    assert "detail" not in "\n".join(like(tmp_path / "a.png", loras_named=True).notes)


def test_a_model_of_the_web_ui_must_be_named(tmp_path):
    with pytest.raises(InputError, match="--model") as caught:
        like(png(tmp_path / "a.png", THEIRS), model_named=False)
    assert caught.value.got == "v1-5-pruned"


def test_input_images_of_the_web_ui_must_be_named(tmp_path):
    path = png(tmp_path / "a.png", f"{THEIRS}, Denoising strength: 0.6, Mask blur: 4")
    for options, missing in (((), "image"), (("image",), "mask_image")):
        with pytest.raises(InputError) as caught:
            like(path, options)
        assert caught.value.argument == missing
    assert like(path, ("image", "mask_image")).arguments["strength"] == 0.6


def test_hires_fix_is_no_image_to_image(tmp_path):
    more = ", Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 9, Hires upscaler: Latent (bicubic antialiased)"
    arguments = like(png(tmp_path / "a.png", THEIRS + more)).arguments
    expected = {"hires": 1.5, "hires_strength": 0.6, "hires_steps": 9, "hires_upscaler": "latent"}
    assert {name: value for name, value in arguments.items() if name.startswith("hires")} == expected
    assert "strength" not in arguments
    result = like(png(tmp_path / "b.png", f"{THEIRS}, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+"))
    assert (result.arguments["hires"], result.arguments["hires_steps"]) == (2, result.arguments["steps"])
    assert "R-ESRGAN" in "\n".join(result.notes)


def test_like_reads_the_user_comment_of_a_jpeg(tmp_path):
    image_from_pixels(np.zeros((8, 8, 3), np.uint8), {"parameters": THEIRS}).save(tmp_path / "a.jpg")
    assert like(tmp_path / "a.jpg").arguments["steps"] == 25


SCHEDULERS = [
    *[("Euler a", "", "euler-a"), ("Euler a", "Automatic", "euler-a"), ("DPM++ 2M Karras", "", "dpm++2m-karras")],
    *[("DPM++ 2M", "Automatic", "dpm++2m-karras"), ("DPM++ 2M SDE", "Exponential", "dpm++2m-sde-exponential")],
    *[("DPM++ SDE Karras", "", "dpm++sde-karras"), ("DPM2 a Karras", "", "kdpm2-a-karras"), ("PLMS", "", "pndm")],
    *[("UniPC", "", "unipc"), ("DDIM", "", "ddim"), ("LMS", "Karras", "lms-karras"), ("Heun", "", "heun")],
    *[("LCM", "", "lcm"), ("DPM2", "Uniform", "kdpm2"), ("Euler", "SGM Uniform", "euler")],
    *[("DPM++ 2S a", "Karras", None), ("Restart", "", None), ("DPM adaptive", "", None)],
]


@pytest.mark.parametrize(("sampler", "schedule", "expected"), SCHEDULERS)
def test_samplers_of_the_web_ui(sampler, schedule, expected):
    more = f", Schedule type: {schedule}" if schedule else ""
    info = parse_infotext(f"x\nSteps: 1, Sampler: {sampler}{more}, Seed: 1")
    assert info.arguments.get("scheduler") == expected
    assert (f"Sampler {sampler}" in info.not_taken) == (expected is None)


@pytest.mark.parametrize("name", scheduler_names())
def test_our_schedulers_survive_the_text(name):
    values = {"prompt": "x", "steps": 3, "seed": 0, "width": 8, "height": 8, "guidance_scale": 7.5, "clip_skip": 1}
    info = parse_infotext(to_infotext(values, spec_from(name), "/models/a, b.safetensors"))
    assert info.arguments == values | {"scheduler": name}
    assert info.model == "a, b"


def test_a_second_pass_survives_the_text(fake):
    settings = {"steps": 4, "seed": 1, "width": 64, "height": 64, "hires": 1.5, "hires_upscaler": "latent"}
    text = fake("x", **settings, hires_strength=0.5).images[0].info["parameters"]
    arguments = parse_infotext(text).arguments
    assert arguments | {"hires": 1.5, "hires_strength": 0.5, "hires_upscaler": "latent"} == arguments
    assert "strength" not in arguments


def test_a_models_own_scheduler_has_the_web_uis_name():
    spec = spec_from(None, {"_class_name": "PNDMScheduler"})
    values = {"prompt": "x", "steps": 3, "seed": 0, "width": 8, "height": 8, "guidance_scale": 7.5}
    assert f"Sampler: {SAMPLERS['pndm']}" in to_infotext(values, spec, "x")


BROKEN = [
    *["", "a cat", "Steps: , Sampler: Euler", "x\nSteps: abc, Seed: 1", f"x\nSteps: {'9' * 5000}", "Steps: 1e9"],
    *["x\nSteps: 1, Size: 5", "x\nSteps: 1, Size: axb", "x\nSteps: 1, CFG scale: --", "x\nSteps: 1, Clip skip: a"],
    *["x <lora:a:b>\nSteps: 1", "x\nSteps: 1" + ", a: 1" * 50_000, "x" * 300_000 + "\nSteps: 1"],
    *["x\nSteps: 1, Denoising strength: much", "x\nSteps: 1, Hires upscale: x"],
]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:30]))
def test_a_broken_text_raises(text, tmp_path):
    with pytest.raises(InputError):
        like(png(tmp_path / "a.png", text), ("image",))


LONG = ["<lora:" * 20_000, " " * 20_000 + " a" * 9_000, "a: " * 10_000, 'a:"' * 10_000, "<lora:a" * 20_000]


@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:9]))
def test_long_texts_take_linear_time(text):
    with cpu_limit():
        for whole in (f"{text}\nSteps: 1", f"x\nSteps: 1, {text}"[:39_000]):
            parse_infotext(whole)


@pytest.mark.parametrize("change", ["Steps: 0", "Steps: 99999", "CFG scale: nan", "Seed: -1", "Size: 1x1", "Size: 7x9"])
def test_numbers_out_of_range_raise_before_the_work(change, tmp_path):
    key = change.split(":")[0]
    items = {"Steps": "Steps: 2", "CFG scale": "CFG scale: 5", "Seed": "Seed: 1"} | {key: change}
    path = png(tmp_path / "a.png", "x\n" + ", ".join(items.values()))
    arguments = ["--like", str(path), "--model", "demo", "--backend", "fake", "-o", str(tmp_path / "b.png")]
    done = CliRunner().invoke(cli.app, ["generate", *arguments])
    assert isinstance(done.exception, CalotypeError)
    assert not (tmp_path / "b.png").exists()


def test_the_command_line_generates_from_a_file_of_the_web_ui(tmp_path):
    text = THEIRS.replace("512x768", "128x128").replace("Clip skip: 2", "Clip skip: 1")
    arguments = ["--like", str(png(tmp_path / "a.png", text)), "--model", "demo", "--backend", "fake", "--steps", "2"]
    done = CliRunner().invoke(cli.app, ["generate", *arguments, "-o", str(tmp_path / "b.png")])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "b.png") as image:
        assert json.loads(image.text["scheduler"])["name"] == "dpm++2m-karras"
        assert (image.text["seed"], image.text["steps"]) == ("3918362478", "2")
    assert "ENSD" in done.stderr
