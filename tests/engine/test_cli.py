"""The command line in a new process: its exit code, stdout and stderr."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calotype.errors import InputError, SamplerError
from calotype.images.png import image_from_pixels, settings_of
from calotype.request.request import Request
from tests.helpers import fork_server

COMMAND = [sys.executable, "-m", "calotype"]


def run(*arguments, cwd=None, env=None):
    environment = {**os.environ, **(env or {})}
    return fork_server.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def generated(tmp_path_factory, pipe):
    """An image that the command line generated."""
    path = tmp_path_factory.mktemp("generated") / "a.png"
    arguments = ("--seed", 7, "--steps", 6, "--scheduler", "euler-a", "--guidance-scale", 3.5, "-o", path)
    done = run("generate", "a yellow star left of a purple heart on a black background", *arguments)
    assert done.returncode == 0, done.stderr
    return path, done


def test_generate_writes_an_image_and_prints_its_path(generated):
    path, done = generated
    assert pixels(path).shape == (128, 128, 3)
    assert done.stdout == f"{path}  seed 7\n"
    assert done.stderr == ""  # no progress bar in a pipe, no output of a library


def test_the_png_contains_its_settings(generated):
    settings = settings_of(generated[0])
    assert settings["prompt"] == "a yellow star left of a purple heart on a black background"
    assert [settings[name] for name in ("seed", "steps", "guidance_scale", "sampler")] == ["7", "6", "3.5", "euler-a"]
    assert len(settings["model_fingerprint"]) == 64


def test_like_generates_the_same_image(generated, tmp_path):
    assert run("generate", "--like", generated[0], "-o", tmp_path / "b.png").returncode == 0
    np.testing.assert_array_equal(pixels(generated[0]), pixels(tmp_path / "b.png"))


def test_options_win_over_like(generated, tmp_path):
    assert run("generate", "--like", generated[0], "--seed", 8, "-o", tmp_path / "b.png").returncode == 0
    settings = settings_of(tmp_path / "b.png")
    assert (settings["seed"], settings["steps"]) == ("8", "6")


def test_several_images_get_numbers(pipe, tmp_path):
    done = run("generate", "a red ring", "--num-images", 2, "--seed", 3, "--steps", 2, "-o", tmp_path / "x.png")
    assert done.returncode == 0
    assert [settings_of(tmp_path / f"x-{i}.png")["seed"] for i in (0, 1)] == ["3", "4"]


def test_an_empty_prompt_generates_an_image(pipe, tmp_path):
    assert run("generate", "", "--steps", 2, "-o", tmp_path / "x.png").returncode == 0


def test_report_is_printed_on_request(pipe, tmp_path):
    done = run("generate", "x", "--steps", 2, "-o", tmp_path / "x.png", "--report")
    assert "openvino fp32" in done.stdout


def test_a_terminal_gets_a_progress_bar(pipe, tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "generate", "x", "--steps", "3", "-o", str(tmp_path / "x.png")], stderr=follower, stdout=follower
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    assert b"generating" in shown
    assert b"3/3" in shown


FAULTS = [
    (["generate", "x", "--steps", "0"], "steps must be"),
    (["generate", "x", "--width", "100"], "multiple of 16"),
    (["generate", "x", "--height", "99999968"], "height"),
    (["generate", "x", "--num-images", "100000"], "100000"),
    (["generate", "x", "--seed", "-5"], "seed"),
    (["generate", "x", "--guidance-scale", "nan"], "guidance_scale"),
    (["generate", "x", "--scheduler", "eulr"], "euler"),
    (["generate", "x", "--backend", "cuda9"], "unknown backend"),
    (["generate", "x", "--backend", "auto,eager"], "auto"),
    (["generate", "x", "--backend", ""], "empty"),
    (["generate", "x", "--model", "nowhere"], "nowhere"),
    (["generate", "x", "-o", "no/such/folder.png"], "no folder"),
    (["generate", "x", "-o", "image.bmp"], ".png"),
    (["generate", "x", "-o", "."], "."),
    (["generate", "--like", "nothing.png"], "Cannot read"),
    (["generate", "x", "--image", "nothing.png"], "nothing.png"),
    (["generate", "x", "--image", __file__], "Cannot read"),
    (["generate", "x", "--strength", "0.5"], "strength"),
    (["generate", "x", "--controlnet", "nowhere"], "nowhere"),
    (["generate", "x", "--controlnet", "demo-canny"], "--control-image"),
    (["generate", "x", "--precision", "float16"], "fp16"),
    (["generate", "x", "--lora", "nothing.safetensors:0.8"], "nothing.safetensors"),
    (["generate", "x", "--textual-inversion", "nothing.safetensors"], "nothing.safetensors"),
    (["generate", "x", "--model", "some-one/nothing", "--offline"], "offline"),
]


@pytest.mark.parametrize(("arguments", "keyword"), FAULTS, ids=[" ".join(a) for a, _ in FAULTS])
def test_an_error_is_one_message_and_exit_code_1(arguments, keyword, pipe, tmp_path):  # `pipe` traces the model
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("calotype: ")
    assert keyword in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["generate"], ["generate", "x", "--stepz", "3"], ["generate", "x", "--steps", "a"], ["paint"]]
)
def test_wrong_usage_is_exit_code_2(arguments, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


AS_AN_ORDINARY_USER = """
import os, pathlib, sys, calotype.images.output
os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))  # root may write anywhere
try:
    calotype.images.output.check_output(pathlib.Path(sys.argv[1]), None)
except calotype.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("where", ["x.png", "locked/x.png", "locked/deeper/x.png", "x" * 300 + ".png"])
def test_an_output_that_cannot_be_written_raises_before_the_work(tmp_path, where):
    (tmp_path / "locked" / "deeper").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest's own folders are closed to others
        folder.chmod(0o755)
    (tmp_path / "locked").chmod(0o000)
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", AS_AN_ORDINARY_USER, tmp_path / where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0o755)
    assert done.stderr == ""
    assert "cannot write" in done.stdout


def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_closed_stderr_loses_no_image(pipe, tmp_path):
    command = f"{sys.executable} -m calotype generate x --steps 2 -o {tmp_path / 'x.png'} 2>&-"
    assert subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert (tmp_path / "x.png").exists()


def test_notes_are_printed(pipe, tmp_path):
    done = run("generate", "red " * 3000, "--steps", 2, "-o", tmp_path / "x.png")
    assert done.returncode == 0
    assert "left out" in done.stderr


def test_like_reuses_the_backend(pipe, tmp_path):
    run("generate", "x", "--steps", 2, "--seed", 1, "--backend", "eager", "-o", tmp_path / "a.png")
    run("generate", "--like", tmp_path / "a.png", "-o", tmp_path / "b.png")
    assert settings_of(tmp_path / "b.png")["backend"] == "eager"
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_like_refuses_a_changed_scheduler(generated, tmp_path):
    spec = json.loads(settings_of(generated[0])["scheduler"])
    for change in ({"class_name": "AutoencoderKL"}, {"name": 3}, {"config": []}, {"more": 1}):
        with Image.open(generated[0]) as image:
            settings = dict(image.text) | {"scheduler": json.dumps(spec | change)}
            image_from_pixels(np.asarray(image), settings).save(tmp_path / "x.png")
        done = run("generate", "--like", tmp_path / "x.png", "-o", tmp_path / "y.png")
        assert done.returncode == 1
        assert "scheduler" in done.stderr


def test_image_and_mask(generated, pipes, tmp_path):
    source, mask = generated[0], tmp_path / "mask.png"
    Image.fromarray(np.eye(128, dtype=bool)).save(mask)
    options = ("--image", source, "--mask-image", mask, "--steps", 4, "--seed", 3)
    pipes["openvino"].component("vae_encoder")  # traced before, so that the command prints nothing about it
    done = run("generate", "a red ring", *options, "-o", tmp_path / "b.png")
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(source) as image, Image.open(mask) as drawn:
        expected = pipes["openvino"]("a red ring", image=image, mask_image=drawn, steps=4, seed=3).images[0]
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), np.asarray(expected))
    again = run("generate", "--like", tmp_path / "b.png", "-o", tmp_path / "c.png")
    assert "--image FILE" in again.stderr
    more = ("--image", source, "--mask-image", mask)
    assert run("generate", "--like", tmp_path / "b.png", *more, "-o", tmp_path / "c.png").returncode == 0
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "c.png"))


def test_options_of_load(monkeypatch, fake, tmp_path):
    from calotype import cli

    loads = []

    def load(check, model, backend, parts, **more):
        loads.append((model, {"backend": backend, **parts, **more}))
        return fake

    monkeypatch.setattr("calotype.loading.load_checked", load)
    more = ["--controlnet", "canny", "--controlnet", "depth", "--lora", "a.safetensors:0.8", "--vae", "tiny"]
    more += ["--textual-inversion", "b.safetensors:<b>", "--offline", "--t2i-adapter", "sketch"]
    more += ["--ip-adapter", "plus.safetensors", "--image-encoder", "encoder", "--precision", "unet=bf16"]
    more += ["--motion-adapter", "motion"]
    cli.app(["generate", "x", *more, "--steps", "1", "-o", str(tmp_path / "x.png")], standalone_mode=False)
    arguments = {"backend": "auto", "controlnet": ["canny", "depth"], "lora": ["a.safetensors:0.8"], "vae": "tiny"}
    arguments |= {"textual_inversion": ["b.safetensors:<b>"], "offline": True, "unet": None, "lora_folder": None}
    arguments |= {"ip_adapter": ["plus.safetensors"], "image_encoder": "encoder", "t2i_adapter": ["sketch"]}
    arguments |= {"precision": "unet=bf16", "motion_adapter": "motion", "style_aligned": False, "pag": False}
    assert loads == [("demo", arguments)]


@pytest.mark.parametrize("wrong", [("--width", 13), ("--scheduler", "eulr"), ("--image-guidance-scale", 2)])
def test_wrong_arguments_raise_before_the_networks_are_opened(wrong, monkeypatch, tmp_path):
    from calotype import cli

    def opened(self, plan):
        raise AssertionError("opened")

    monkeypatch.setattr("calotype.backends.components.Components.open_used", opened)
    with pytest.raises((InputError, SamplerError)):
        cli.app(["generate", "x", *map(str, wrong), "-o", str(tmp_path / "x.png")], standalone_mode=False)


def test_the_help_has_the_defaults_of_request():
    defaults = {f.name: f.default for f in fields(Request)}
    text = " ".join(run("generate", "--help").stdout.split())
    for name in ("steps", "guidance_scale", "num_images"):
        option = f"--{name.replace('_', '-')} "
        help_text = text[text.index(option) :].split(" --")[0]
        assert f"[default: {defaults[name]}]" in help_text, name


def test_version_and_doctor():
    assert run("--version").stdout.startswith("calotype 0.")
    text = run("doctor").stdout
    assert "onnxruntime" in text
    assert "cache" in text


def test_the_help_lists_every_option():
    options = set(run("generate", "--help").stdout.replace(",", " ").split())
    from_python = {"--prompt", "--output-type", "--denoising-start", "--denoising-end", "--progress", "--generator"}
    embeds = {"--prompt-embeds", "--pooled-prompt-embeds", "--negative-prompt-embeds"}
    from_python |= embeds | {"--negative-pooled-prompt-embeds", "--latents"}
    from_python |= {"--callback-on-step-end", "--callback-on-step-end-tensor-inputs", "--ip-adapter-image-embeds"}
    assert {f"--{f.name.replace('_', '-')}" for f in fields(Request)} - options == from_python
    assert {"--like", "--model", "--backend", "--controlnet", "--lora", "--report", "-o"} <= options
    assert {"--vae", "--textual-inversion", "--offline", "--prompts", "--grid", "--image-quality"} <= options


@pytest.mark.parametrize(
    "module", ["calotype", "calotype.export.commands.cli", "calotype.pipeline", "calotype.loading"]
)
def test_importing_is_lean(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_traced_model_needs_neither_torch_nor_diffusers(generated, tmp_path):
    code = (
        "import sys, calotype\n"
        "calotype.load('demo', backend='onnxruntime')('x', steps=6, scheduler='euler-a', seed=1)\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_m_and_the_script_are_one_command():
    script = Path(sys.executable).parent / "calotype"
    assert (
        subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
        == run("--version").stdout
    )
