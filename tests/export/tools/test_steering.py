"""The demonstration ControlNet: it steers, matches diffusers, and its training resumes."""

import json
import sys
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import calotype
from calotype.export.judge import scenes
from calotype.export.quality.metrics import psnr
from calotype.export.sources.source import find
from demo_training import train_clip, train_control, trainer
from demo_training.__main__ import app
from demo_training.evaluate import f1, held_out_scenes, steer
from tests.helpers import fork_server


@pytest.fixture(scope="module")
def steered():
    return calotype.load("demo", controlnet="demo-canny", backend="onnxruntime")


def test_f1_of_edges():
    line = np.zeros((20, 20), bool)
    line[10] = True
    assert f1(line, line) == 1
    assert f1(np.roll(line, 2, axis=0), line) == 1
    assert f1(np.roll(line, 3, axis=0), line) == 0
    assert f1(line | np.roll(line, 5, axis=0), line) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert (f1(~line & line, line), f1(~line & line, ~line & line)) == (0, 1)


def test_edges_steer(steered):
    """A sample of the sixty that `demo_training edges` measures; the minimum allows for the small sample."""
    result = steer(steered, held_out_scenes(4, skip=3000), steps=10)
    report = result.report
    assert report["with"]["f1"] >= 0.75
    assert report["with"]["f1"] >= report["without"]["f1"] + 0.25
    assert result.page().size == (8 + 6 * 136, 8 + 2 * 188)


def test_it_is_small_and_a_copy_of_the_unets_first_half():
    folder = find("demo-canny")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 4_100_000
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "numpy") as opened:
        assert {opened.get_slice(k).get_dtype() for k in opened.keys()} == {"F16"}  # noqa: SIM118


def test_its_images_match_diffusers(steered, demo_folder, figures):
    reference = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        demo_folder,
        controlnet=diffusers.ControlNetModel.from_pretrained(
            find("demo-canny"), torch_dtype=torch.float32, low_cpu_mem_usage=False
        ),
        dtype=torch.float32,
        low_cpu_mem_usage=False,
        safety_checker=None,
    )
    reference.set_progress_bar_config(disable=True)
    reference.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        reference.scheduler.config, use_karras_sigmas=True
    )
    scene = held_out_scenes(1)[0]
    words, edges = scenes.caption(scene), calotype.preprocess.canny(scenes.render(scene))
    settings = {"guidance_scale": 5.0, "output_type": "np"}
    noise = torch.Generator().manual_seed(3)
    expected = reference(words, image=edges, num_inference_steps=8, generator=noise, **settings).images
    for pipe in (steered, calotype.load("demo", controlnet="demo-canny", backend="eager")):
        got = pipe(words, control_image=edges, steps=8, seed=3, scheduler="dpm++2m-karras", **settings)
        backend = got.report.components[1].backend
        figures.hold(
            ("demonstration with demo-canny", "text to image", "dpm++2m-karras"), backend, got.images, expected
        )


def test_by_the_command_line(steered, tmp_path):
    scene = held_out_scenes(1)[0]
    edges = calotype.preprocess.canny(scenes.render(scene))
    edges.save(tmp_path / "edges.png")
    words = scenes.caption(scene)
    command = [sys.executable, "-m", "calotype", "generate", words, "--controlnet", "demo-canny", "--steps", "4"]
    more = ["--control-image", "edges.png", "--seed", "3", "--backend", "onnxruntime", "-o", "out.png"]
    done = fork_server.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = steered(words, control_image=edges, steps=4, seed=3).images[0]
    with Image.open(tmp_path / "out.png") as image:
        assert psnr(np.asarray(image), np.asarray(expected), 255.0) >= 60


class Stopped(Exception):
    """Simulates a crash."""


@pytest.fixture
def few(monkeypatch):
    """Few steps on few scenes."""
    for module in (train_control, train_clip):
        monkeypatch.setattr(module, "STAGE", replace(module.STAGE, steps=4, batch=3, warmup=2))
        monkeypatch.setattr(module, "SCENES", 6)
    monkeypatch.setattr(train_control, "SHOWN", 2)


@pytest.mark.parametrize("module", [train_control, train_clip], ids=["control", "clip"])
def test_a_resumed_training_matches_an_uninterrupted_one(few, demo_folder, tmp_path, monkeypatch, module):
    run = {train_control: train_control.train_control, train_clip: train_clip.train_clip}[module]

    def stop_after_two(self):
        real_save(self)
        if self.step == 2:
            raise Stopped

    configs = [
        trainer.TrainingConfig(folder=tmp_path / name, seed=0, device=torch.device("cpu")) for name in ("one", "two")
    ]
    unbroken = run(configs[0], demo_folder).state_dict()
    real_save = trainer.Trainer.save
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
        patch.setattr(trainer.Trainer, "save", stop_after_two)
        with pytest.raises(Stopped):
            run(configs[1], demo_folder)
    resumed = run(configs[1], demo_folder).state_dict()
    for key, value in unbroken.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-6, rtol=1e-5)


def test_trained_networks_open(few, demo_folder, tmp_path):
    config = trainer.TrainingConfig(folder=tmp_path / "train", seed=0, device=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' about its own casts to fp16
        train_control.train_control(config, demo_folder).half().save_pretrained(tmp_path / "net")
        clip = train_clip.train_clip(config, demo_folder)
        train_clip.save_clip(clip, demo_folder / "tokenizer", tmp_path / "clip")
        assert str(demo_folder) not in (tmp_path / "clip" / "config.json").read_text()
    pipe = calotype.load("demo", controlnet=tmp_path / "net", backend="eager")
    image = pipe("a red ring", control_image=np.zeros((128, 128, 3), np.uint8), steps=1, seed=1).images[0]
    assert np.isfinite(calotype.clip_score(image, "a red ring", model=tmp_path / "clip")).all()
    assert (config.folder / "control.png").is_file()


@pytest.mark.parametrize(
    "words", [["captions", "--count", "1", "--steps", "1"], ["edges", "--count", "1", "--steps", "1"]]
)
def test_measurements_print_json_and_draw_a_sheet(words, tmp_path):
    result = CliRunner().invoke(app, [*words, "--backend", "onnxruntime", "--sheet", str(tmp_path / "sheet.png")])
    assert result.exception is None, result.output
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 1
    assert (tmp_path / "sheet.png").is_file()


def test_a_training_command_writes_the_network(few, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    out = tmp_path / "clip"
    result = CliRunner().invoke(app, ["train", "clip", "--folder", str(tmp_path / "train"), "--out", str(out)])
    assert result.exception is None, result.output
    assert np.isfinite(calotype.clip_score(np.zeros((64, 64, 3), np.uint8), "a red ring", model=out)).all()
