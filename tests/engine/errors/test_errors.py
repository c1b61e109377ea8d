"""Errors carry their data as attributes, also through pickles and from child processes."""

import copy
import pickle
import subprocess

import numpy as np
import pytest

import calotype
from calotype import errors
from calotype.errors.validation import check_float, check_int, check_names
from calotype.export.steps import subprocess_task
from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.plan.bindings import Binding, check_arrays
from calotype.plan.profile import Profile, Range
from calotype.sampling.compile import compile_sampler
from calotype.sampling.noise import BatchNoise
from calotype.sampling.schedulers import spec_from

VALUES = {"path": "/a/model", "steps": 7, "step": 3, "total": 20, "free_bytes": 1 << 30, "got": 1.5}
VALUES |= {"relative_error": 0.5, "limit": 1e-4}


def attributes_of(kind):
    return getattr(kind.__init__, "__kwdefaults__", None) or {}


@pytest.mark.parametrize("name", errors.__all__)
def test_attributes_are_known_drawn_and_survive_pickles(name):
    kind = getattr(errors, name)
    assert kind("failed").data == {}
    data = {each: VALUES.get(each, f"a {each}") for each in attributes_of(kind)}
    error = kind("it\nfailed", **data)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "it\\nfailed"
        assert again.args == ("it\nfailed",)
        assert {each: str(value) for each, value in again.data.items()} == {n: str(v) for n, v in data.items()}
    for each in attributes_of(kind):
        assert getattr(kind("failed"), each) is None
        assert each in errors.__doc__
    with pytest.raises(TypeError):
        kind("failed", no_such_attribute=1)


def test_only_numbers_and_texts_are_kept_as_they_are():
    assert errors.InputError("x", got=100).got == 100
    assert errors.InputError("x", got="a cat").got == "a cat"
    image = errors.InputError("x", got=np.zeros((512, 512, 3)))
    assert isinstance(image.got, str)
    assert len(image.got) < 100


PROFILE = Profile(
    batch=Range(min=1, opt=1, max=4),
    height=Range(min=64, opt=64, max=512),
    width=Range(min=64, opt=64, max=512),
    multiple=8,
)
INVALID = {
    "steps": (lambda: check_int("steps", 0, 1, 1000), 0),
    "guidance_scale": (lambda: check_float("guidance_scale", "5", 100), "5"),
    "stepz": (lambda: check_names(["stepz"], ["steps"], {}), None),
    "width": (lambda: PROFILE.check(batch=1, height=64, width=100), 100),
    "height": (lambda: PROFILE.check(batch=1, height=8, width=64), 8),
    "num_images": (lambda: PROFILE.check(batch=9, height=64, width=64), 9),
    "seed": (lambda: BatchNoise((-1,), (4, 8, 8)), -1),
    "prompts": (lambda: calotype.clip_score(np.zeros((8, 8, 3), np.uint8), []), "[]"),
    "images": (lambda: calotype.clip_score([], "a cat"), None),
    "image": (lambda: calotype.preprocess.canny(np.zeros((8, 8))[None, None]), "an array of shape [1, 1, 8, 8]"),
    "x": (
        lambda: check_arrays("unet", [Binding(name="x", dtype="float32", dims=(2,))], {"x": np.zeros(3, np.float32)}),
        "float32 [3]",
    ),
}


@pytest.mark.parametrize("argument", INVALID)
def test_an_invalid_argument_is_named_with_its_value(argument):
    call, got = INVALID[argument]
    with pytest.raises(errors.InputError) as raised:
        call()
    assert (raised.value.argument, raised.value.got) == (argument, got)
    if got is not None:
        assert raised.value.expected


def test_a_missing_file_is_named(tmp_path):
    for read in (lambda path: read_json(path, "it is required"), file_digest):
        with pytest.raises(errors.SourceError) as raised:
            read(tmp_path / "config.json")
        assert raised.value.path == tmp_path / "config.json"


def test_a_scheduler_is_named():
    with pytest.raises(errors.SamplerError) as raised:
        spec_from("eulr")
    assert raised.value.data == {"scheduler": "eulr"}
    with pytest.raises(errors.SamplerError) as raised:
        compile_sampler("euler", 5000)
    assert raised.value.data == {"scheduler": "euler", "steps": 5000}


def test_data_come_from_child_processes(tmp_path, monkeypatch):
    raising = "raise SourceError('it is damaged', path=path, field='unet.in_channels')"
    module = f"from calotype.errors import SourceError\n\ndef fail(path):\n    {raising}\n"
    (tmp_path / "failing.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(subprocess_task, "subprocess", subprocess)  # a fresh interpreter reads PYTHONPATH
    with pytest.raises(errors.SourceError) as raised:
        run_in_subprocess("a test", "failing:fail", path=str(tmp_path))
    assert raised.value.data == {"path": tmp_path, "field": "unet.in_channels"}
