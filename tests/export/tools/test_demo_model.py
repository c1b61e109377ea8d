"""The demonstration model: its files, and how well it follows captions."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from calotype.export.judge import scenes
from calotype.export.quality.metrics import psnr
from demo_training.evaluate import held_out_captions, score


def test_it_is_small_and_a_stable_diffusion_in_every_part(demo_folder):
    files = [p for p in demo_folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    assert json.loads((demo_folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    for weights in demo_folder.rglob("*.safetensors"):
        with safe_open(weights, "numpy") as opened:
            assert {opened.get_slice(k).get_dtype() for k in opened.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize(("things", "minimum"), [(1, 0.85), (2, 0.7)])
def test_it_generates_held_out_captions(pipe, things, minimum):
    """A sample of the 200 that `demo_training captions` measures; the minimum allows for the small sample."""
    result = score(pipe, held_out_captions(things, 12, seed=5000), guidance_scale=5.0)
    assert result.share >= minimum, result.wrong


def test_its_autoencoder_keeps_scenes(pipe):
    drawn = [scenes.render(scenes.draw_scene(s)) for s in range(10_000_000, 10_000_016)]
    pixels = np.stack(drawn).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    moments = pipe.component("vae_encoder")(sample=pixels)["latent_parameters"]
    again = pipe.component("vae_decoder")(latent_sample=np.ascontiguousarray(moments[:, :4]))["sample"]
    each = [psnr(a.clip(-1, 1) / 2 + 0.5, b / 2 + 0.5) for a, b in zip(again, pixels, strict=True)]
    assert np.mean(each) >= 28


def test_captions_are_held_out():
    trained = {scenes.caption(scenes.draw_scene(s, held_out=False)) for s in range(3000)}
    held_out = {c for things in (1, 2) for c in held_out_captions(things, 100)}
    assert not trained & held_out
