"""Small trainings: they resume exactly, and write a model that opens."""

import functools
import warnings
from dataclasses import replace

import pytest
import torch

import calotype
from demo_training import networks, trainer
from demo_training import train_model as train
from demo_training.train_clip import SceneImages
from demo_training.train_control import Edges
from demo_training.train_unet import Latents, loss_weights


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Few steps on few scenes."""
    for name, batch in (("vae", 2), ("text", 4), ("unet", 2)):
        monkeypatch.setitem(train.STAGES, name, replace(train.STAGES[name], steps=4, batch=batch, warmup=2))
    monkeypatch.setattr(train, "CROPPED", 4)
    monkeypatch.setattr(train, "ENCODED", 6)
    return trainer.TrainingConfig(folder=tmp_path / "train", seed=0, device=torch.device("cpu"))


def test_a_resumed_run_matches_an_uninterrupted_one(config, tmp_path, monkeypatch):
    """The autoencoder's; `test_steering.py` resumes another stage."""
    unbroken = train.train_vae(config).state_dict()
    broken = replace(config, folder=tmp_path / "broken")

    class Stopped(Exception):
        pass

    def stop_after_two(self):
        real_save(self)
        if self.step == 2:
            raise Stopped

    real_save = trainer.Trainer.save
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint after every step
        patch.setattr(trainer.Trainer, "save", stop_after_two)
        with pytest.raises(Stopped):
            train.train_vae(broken)
    resumed = train.train_vae(broken).state_dict()
    for key, value in unbroken.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-6, rtol=1e-5)


def test_all_stages_write_a_model_that_opens(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train.unet, "sample", functools.partial(train.unet.sample, steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' about its own casts to fp16
        train.train_model(config, tmp_path / "model")
    image = calotype.load(tmp_path / "model", backend="eager")("a red ring", steps=1, seed=1).images[0]
    assert image.size == (128, 128)
    logged = [line.split(",") for line in (config.folder / "log.csv").read_text().splitlines()]
    assert [(name, step) for name, step, *_ in logged] == [("vae", "4"), ("text", "4"), ("unet", "4")]
    assert {p.name for p in config.folder.glob("*.png")} == {"vae.png", "unet.png"}


def test_cached_files_depend_on_the_count_and_the_autoencoder(tmp_path):
    torch.manual_seed(0)
    vaes = [networks.new_vae() for _ in range(2)]
    config = trainer.TrainingConfig(folder=tmp_path, seed=0, device=torch.device("cpu"))
    first, other, more, again = (
        Latents.cached(vaes[i], count, config).values for i, count in ((0, 2), (1, 2), (0, 3), (0, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [len(Edges(count, tmp_path).packed) for count in (2, 3)] == [2, 3]
    assert [len(SceneImages(count, tmp_path).values) for count in (2, 3)] == [2, 3]
    assert len(more) == 3


def test_the_noisy_end_weighs_as_v_prediction_and_the_clean_end_is_held_down():
    snr = torch.tensor([0.001, 0.1, 1.0, 100.0])
    torch.testing.assert_close(loss_weights(snr), torch.tensor([16.0, 11.0, 2.0, 0.05]))


def test_the_learning_rate_warms_up_holds_and_falls():
    stage = trainer.Stage(name="x", steps=1000, batch=1, lr=1.0, warmup=100, hold=0.5, lr_end=0.0)
    rates = [trainer.learning_rate(stage, s) for s in (0, 49, 99, 100, 499, 750, 1000)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])
