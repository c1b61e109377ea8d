"""`--like` with a stranger's PNG: the PNG cannot choose a model, and wrong settings raise `InputError`."""

import json
import os

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from typer.testing import CliRunner

from calotype import cli
from calotype.errors import CalotypeError, InputError
from calotype.files.known_models import is_known, remember_model
from calotype.images.png import CHUNK, settings_of
from calotype.report.like import read_like


@pytest.fixture
def settings(fake):
    """Settings in a PNG of the demonstration model."""
    return dict(fake("a red ring", steps=2, seed=3).images[0].info) | {"backend": "eager"}


@pytest.fixture
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))


def png(path, settings):
    chunks = PngImagePlugin.PngInfo()
    for name, value in settings.items():
        chunks.add_itxt(name, value)
    Image.new("RGB", (16, 16)).save(path, pnginfo=chunks)
    return path


def like(path, *, model_named=False):
    return read_like(path, (), loras_named=False, model_named=model_named)


def test_an_image_of_the_shipped_model_is_read(settings, tmp_path):
    result = like(png(tmp_path / "a.png", settings))
    assert (result.model, result.backend, result.arguments["prompt"]) == ("demo", "eager", "a red ring")
    assert result.fingerprint == settings["model_fingerprint"]


STRANGE = ["someone/model", "/etc", "~", "../model", "/proc/self/fd/0", "//host/share", "", "a\x1b[2J\nb", "demo/../x"]


@pytest.mark.parametrize("model", STRANGE)
def test_a_png_cannot_choose_the_model(model, settings, tmp_path, own_home):
    path = png(tmp_path / "a.png", settings | {"model": model})
    with pytest.raises(InputError, match="--model") as caught:
        like(path)
    assert model.isprintable() is (model in str(caught.value))
    assert str(caught.value).isprintable()
    assert like(path, model_named=True).model == model


def test_an_unknown_model_is_not_loaded(settings, tmp_path, own_home, monkeypatch):
    monkeypatch.setattr("calotype.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))
    path = png(tmp_path / "a.png", settings | {"model": "someone/model"})
    done = CliRunner().invoke(cli.app, ["generate", "--like", str(path), "-o", str(tmp_path / "b.png")])
    assert isinstance(done.exception, InputError)
    assert "someone/model" in str(done.exception)


def test_a_local_model_is_known_after_its_first_use(settings, model_copy, tmp_path, own_home):
    path = png(tmp_path / "a.png", settings | {"model": str(model_copy)})
    with pytest.raises(InputError, match="--model"):
        like(path)
    arguments = ["x", "--model", str(model_copy), "--backend", "fake", "--steps", "1", "-o", str(tmp_path / "b.png")]
    assert CliRunner().invoke(cli.app, ["generate", *arguments]).exit_code == 0
    assert like(path).model == str(model_copy)
    assert like(tmp_path / "b.png").model == str(model_copy)


def test_only_an_existing_model_becomes_known(own_home, tmp_path, monkeypatch):
    remember_model("someone/model")
    assert not is_known("someone/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan").mkdir()
    remember_model("plan")
    assert is_known("plan")
    assert is_known(str(tmp_path / "plan"))
    monkeypatch.chdir("/")
    assert not is_known("plan")


def test_a_changed_model_is_refused(settings, tmp_path):
    path = png(tmp_path / "a.png", settings | {"model_fingerprint": "0" * 64, "backend": "fake"})
    done = CliRunner().invoke(cli.app, ["generate", "--like", str(path), "-o", str(tmp_path / "b.png")])
    assert isinstance(done.exception, InputError)
    assert "fingerprint" in str(done.exception)


WRONG = [
    *[("backend", value) for value in ("", "no", "eager,fake", "\x1b[2J")],
    *[(name, value) for name in ("steps", "seed", "width", "guidance_scale") for value in ("", "x", "9" * 5000)],
    *[("scheduler", value) for value in ("", "[" * 100_000, '{"config": {"solver_order": 1000000000}}')],
    *[("guidance_interval", value) for value in ("", "3", "{}", '["a", "b"]', "[" * 100_000, "[NaN, 1]", "[true]")],
    *[("loras", value) for value in ("", "3", "{}", "[1]", "[[]]", '[["x"]]', "[[1, 2, 3]]", "[" * 100_000)],
    *[("loras", json.dumps([[name, 1, "0" * 64]])) for name in ("nothing.safetensors", "/dev/zero", "a\0b", "")],
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r:.20}" for name, value in WRONG])
def test_a_wrong_setting_raises_a_calotype_error(name, value, settings, tmp_path):
    if value == "9" * 5000 and name == "guidance_scale":
        value = "nan, no"
    with pytest.raises(CalotypeError):
        like(png(tmp_path / "a.png", settings | {name: value}))


@pytest.mark.parametrize("name", ["prompt", "seed", "model", "backend", "model_fingerprint", "scheduler", CHUNK])
def test_a_missing_setting_raises(name, settings, tmp_path):
    del settings[name]
    with pytest.raises(InputError):
        like(png(tmp_path / "a.png", settings))


def test_only_png_jpeg_and_webp_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("RGB", (16, 16)).save(tmp_path / "gif.png", format="GIF")
    for name in ("pipe.png", "a.png", "gif.png", "nothing.png", "."):
        with pytest.raises(InputError, match="Cannot read"):
            settings_of(tmp_path / name)


def test_an_image_with_too_many_pixels_is_refused(settings, tmp_path, monkeypatch):
    path = png(tmp_path / "a.png", settings)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(InputError, match="Cannot read"):
        settings_of(path)


def test_a_lora_must_be_the_same_file(settings, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, file)
    path = png(tmp_path / "a.png", settings | {"loras": json.dumps([[str(file), 1.0, "0" * 64]])})
    with pytest.raises(InputError, match="--lora"):
        like(path)
