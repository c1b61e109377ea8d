"""A schedule is compiled once. A damaged file in the cache is compiled again."""

import numpy as np
import pytest
from diffusers import DDIMScheduler

from calotype.sampling.cache import sampler_for
from calotype.sampling.compile import compile_sampler

CONFIG = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """The calls of the compiler."""
    calls = []
    monkeypatch.setattr(
        "calotype.sampling.cache.compile_sampler", lambda *a, **k: calls.append(a) or compile_sampler(*a, **k)
    )
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
def test_a_damaged_file_is_compiled_again(home, compiled, damage):
    sampler_for("ddim", CONFIG, 7)
    (file,) = (home / "samplers").iterdir()
    file.write_bytes(damage)
    sampler_for("ddim", CONFIG, 7)
    sampler_for("ddim", CONFIG, 7)
    assert len(compiled) == 2


@pytest.mark.parametrize("changed", ["alphas_cumprod", "init_noise_sigma"])
def test_a_modified_scheduler_object_is_compiled_itself(home, changed):
    plain = sampler_for("ddim", CONFIG, 5)[1]
    scheduler = DDIMScheduler.from_config(CONFIG, clip_sample=False)
    setattr(scheduler, changed, getattr(scheduler, changed) * 0.5)
    assert not np.allclose(sampler_for(scheduler, CONFIG, 5)[1].rows, plain.rows)
    assert len(list((home / "samplers").iterdir())) == 1
