"""A schedule is compiled once; what is damaged on disk is compiled again."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from calotype.sampler_cache import sampler_for

CONFIG = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """How often the compiler ran."""
    import calotype.probe

    calls, real = [], calotype.probe.compile_sampler
    monkeypatch.setattr("calotype.probe.compile_sampler", lambda *a: calls.append(a) or real(*a))
    return calls


def test_the_second_time_it_is_read(compiled):
    _, first = sampler_for("ddim", CONFIG, 7)
    _, again = sampler_for("ddim", CONFIG, 7)
    np.testing.assert_array_equal(first.rows, again.rows)
    sampler_for("ddim", CONFIG, 8)
    assert len(compiled) == 2


def test_two_names_of_one_schedule_share_a_matrix_and_keep_their_names(compiled):
    assert sampler_for("ddim", CONFIG, 7)[1].name == "ddim"
    assert sampler_for(None, CONFIG, 7)[1].name == "DDIMScheduler"
    assert len(compiled) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no more", b"x" * 5000])
def test_a_damaged_file_is_made_again(home, compiled, damage):
    sampler_for("ddim", CONFIG, 7)
    (file,) = (home / "samplers").iterdir()
    file.write_bytes(damage)
    sampler_for("ddim", CONFIG, 7)
    sampler_for("ddim", CONFIG, 7)
    assert len(compiled) == 2


def test_a_scheduler_changed_by_hand_leaves_no_file(home):
    scheduler = DDIMScheduler.from_config(CONFIG, clip_sample=False)
    scheduler.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    _, changed = sampler_for(scheduler, CONFIG, 5)
    assert not (home / "samplers").exists()
    assert not np.allclose(changed.rows, sampler_for("ddim", CONFIG, 5)[1].rows)
