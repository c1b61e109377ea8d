"""The samplers stored in a plan: look-up by content, errors for damaged files, compilation for all step counts."""

import json

import numpy as np
import pytest

from calotype.errors import SamplerError
from calotype.export.builder.samplers import store_samplers
from calotype.sampling.archive import find_matrix, read_index
from calotype.sampling.cache import sampler_for
from calotype.sampling.compile import compile_sampler
from calotype.sampling.schedule_range import ScheduleRange
from calotype.sampling.schedulers import spec_from

CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    schedulers = [None, "euler-a"]
    store_samplers(tmp_path / "samplers", CONFIG, schedulers=schedulers, steps=[3, 4, 5, 8], image_steps=[4, 6])
    return tmp_path / "samplers"


def test_what_is_stored_is_what_is_compiled(folder):
    for name, steps in ((None, 4), ("euler-a", 8)):
        spec = spec_from(name, CONFIG)
        got, expected = find_matrix(folder, spec, steps), compile_sampler(spec, steps)
        for field in ("timesteps", "rows", "preview"):
            np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))
        assert got.name == spec.name


def test_the_index_says_what_there_is(folder):
    assert [str(entry) for entry in read_index(folder)] == [
        "EulerDiscreteScheduler in 3-5, 8 steps (from images: 4)",
        "euler-a in 3-5, 8 steps (from images: 4)",
    ]
    assert find_matrix(folder, spec_from(None, CONFIG), 6) is None
    assert find_matrix(folder, spec_from("ddim", CONFIG), 4) is None


@pytest.mark.parametrize("skipped", range(4))
@pytest.mark.parametrize("preserves_unmasked", [True, False])
def test_ranges_that_start_from_an_image_are_stored_too(folder, skipped, preserves_unmasked):
    for schedule_range in (
        ScheduleRange(origin="image", skipped=skipped, preserves_unmasked=preserves_unmasked),
        ScheduleRange(preserves_unmasked=True),
    ):
        got, expected = (
            find_matrix(folder, spec_from("euler-a", CONFIG), 4, schedule_range),
            compile_sampler(spec_from("euler-a", CONFIG), 4, schedule_range=schedule_range),
        )
        for field in ("timesteps", "rows", "preview", "image_coefficients"):
            np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))
        if schedule_range.preserves_unmasked:
            np.testing.assert_array_equal(got.masked_rows, expected.masked_rows)
    for steps, schedule_range in (
        (5, ScheduleRange(preserves_unmasked=True)),
        (4, ScheduleRange(end=0.5)),
        (4, ScheduleRange(origin="latents", begin=0.5)),
    ):
        assert find_matrix(folder, spec_from("euler-a", CONFIG), steps, schedule_range) is None


def test_a_name_of_the_same_schedule_finds_it_and_another_config_does_not(folder):
    assert find_matrix(folder, spec_from("euler", CONFIG), 4).name == "euler"
    assert find_matrix(folder, spec_from("euler", CONFIG | {"beta_end": 0.02}), 4) is None
    assert find_matrix(folder, spec_from("euler-karras", CONFIG), 4) is None


def test_two_names_of_one_schedule_are_one_file(tmp_path):
    report = store_samplers(tmp_path / "s", CONFIG, schedulers=[None, "euler", "Euler"], steps=[3])
    assert len(report.stored) == 1
    assert len(list((tmp_path / "s").glob("*.npz"))) == 1


def test_storing_again_replaces(folder):
    store_samplers(folder, CONFIG, schedulers=["euler"], steps=[2], image_steps=[])
    entries = [str(entry) for entry in read_index(folder)]
    assert entries == ["euler-a in 3-5, 8 steps (from images: 4)", "euler in 2 steps"]


def test_the_plan_comes_before_the_store_and_the_compiler(folder, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr("calotype.sampling.cache.compile_sampler", compiled)
    assert sampler_for("euler", CONFIG, 4, folder)[1].calls == 4
    with pytest.raises(AssertionError, match="compiled"):
        sampler_for("euler", CONFIG, 6, folder)


def test_the_version_of_diffusers_has_no_part_in_it(folder, monkeypatch):
    monkeypatch.setattr("calotype.sampling.schedulers._diffusers_version", lambda: "none")
    assert find_matrix(folder, spec_from("euler", CONFIG), 4) is not None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"x" * 999])
def test_damaged_samplers_raise(folder, damage):
    (file,) = folder.glob("Euler*.npz")
    file.write_bytes(damage)
    with pytest.raises(SamplerError, match=r"Euler.*\.npz"):
        sampler_for("euler", CONFIG, 4, folder)


def test_one_changed_number_is_damage(folder):
    (file,) = folder.glob("Euler*.npz")
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    with pytest.raises(SamplerError, match="SHA-256"):
        sampler_for("euler", CONFIG, 4, folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "schedulers": [{"name": "x"}]}'])
def test_a_damaged_index_raises(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(SamplerError) as raised:
        sampler_for("euler", CONFIG, 4, folder)
    assert "\n" not in str(raised.value)


def test_an_index_with_the_old_name_of_image_steps_is_read(folder):
    expected, index = read_index(folder), (folder / "index.json").read_text()
    assert "image_steps" in index
    (folder / "index.json").write_text(index.replace("image_steps", "pictures"))
    assert read_index(folder) == expected


def test_a_file_outside_the_folder_is_not_read(folder, tmp_path):
    (file,) = folder.glob("Euler*.npz")
    file.rename(tmp_path / file.name)
    index = json.loads((folder / "index.json").read_text())
    index["schedulers"][0]["file"] = f"../{file.name}"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(SamplerError, match="damaged"):
        sampler_for("euler", CONFIG, 4, folder)


def test_schedulers_that_run_themselves_are_left_out_with_the_reason(tmp_path):
    report = store_samplers(tmp_path / "s", CONFIG | {"thresholding": True}, schedulers=["ddim", "euler"], steps=[3])
    assert [entry.name for entry in report.stored] == ["euler"]
    assert "thresholds" in report.left_out["ddim"]
    assert read_index(tmp_path / "nothing") == ()


def test_impossible_step_counts_are_left_out(tmp_path):
    report = store_samplers(tmp_path / "s", CONFIG, schedulers=["euler"], steps=[4, 5000])
    assert [entry.steps for entry in report.stored] == [(4,)]
    assert "5000" in report.left_out["euler"]
    with pytest.raises(SamplerError, match="5000"):
        store_samplers(tmp_path / "t", CONFIG, schedulers=["euler"], steps=[5000])
    with pytest.raises(SamplerError, match="eulr"):
        store_samplers(tmp_path / "t", CONFIG, schedulers=["eulr"])
