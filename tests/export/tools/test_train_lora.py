"""The demonstration model's LoRA: its training images, its training, and the images it generates."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.numpy import load_file

from calotype.export.judge import scenes
from demo_training import train_lora
from demo_training.trainer import TrainingConfig

RED, BLUE = (scenes.COLORS[name] for name in ("red", "blue"))
PROMPT = "a large red circle on a blue background"


def middle_of(image):
    return np.asarray(image)[52:74, 56:78].mean(axis=(0, 1))


def test_things_are_hollow():
    thing = scenes.Thing(color="red", shape="circle", size="large", x=64, y=64, radius=40)
    pixels = train_lora.render(scenes.Scene(background="blue", things=(thing,)))
    assert tuple(pixels[64, 64]) == tuple(pixels[0, 0]) == BLUE
    assert tuple(pixels[64, 64 + 32]) == RED


def test_it_generates_hollow_things(pipe, demo_folder):
    assert np.abs(middle_of(pipe(PROMPT, seed=7).images[0]) - RED).max() < 40
    pipe.set_lora(demo_folder / "outline.safetensors")
    result = np.asarray(pipe(PROMPT, seed=7).images[0])
    pipe.set_lora(None)
    assert np.abs(middle_of(result) - BLUE).max() < 60
    assert (np.abs(result.astype(int) - RED).max(axis=2) < 40).sum() > 1000  # and something is red


def test_the_training_has_the_shipped_tensors(demo_folder, tmp_path, monkeypatch):
    shipped = load_file(demo_folder / "outline.safetensors")
    monkeypatch.setattr(train_lora, "STAGE", replace(train_lora.STAGE, steps=2, batch=2))
    monkeypatch.setattr(train_lora, "SCENES", 4)
    config = TrainingConfig(folder=tmp_path, seed=0, device=torch.device("cpu"))
    result = train_lora.train_lora(config, demo_folder)
    assert {name: tuple(t.shape) for name, t in result.items()} == {name: t.shape for name, t in shipped.items()}
    assert (
        sum(bool(t.any()) for name, t in result.items() if "lora_B" in name) == len(result) // 2
    )  # all matrices changed
