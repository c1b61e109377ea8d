"""The stamps of a folder, and the error that names the first changed file."""

import json
import os

import pytest

from calotype.errors import SourceError
from calotype.plan.integrity import stamps, stamps_from_json, verify

ADVICE = "run `calotype build demo` again"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a plän"
    (folder / "unet" / "deep").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "unet" / "model.onnx").write_bytes(b"0123456789")
    (folder / "unet" / "deep" / "w").write_bytes(b"")
    return folder


def test_stamps_cover_every_file_and_survive_json(folder):
    taken = stamps(folder, exclude=("plan.json",))
    assert {name: size for name, (size, _) in taken.items()} == {"unet/deep/w": 0, "unet/model.onnx": 10}
    assert taken["unet/deep/w"][1] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert stamps_from_json(json.loads(json.dumps(taken))) == taken
    assert set(stamps(folder)) - set(taken) == {"plan.json"}
    verify(folder, taken, advice=ADVICE)
    verify(folder, taken, advice=ADVICE, allowed=("plan.json",))


DAMAGES = [
    (lambda f: (f / "unet/model.onnx").write_bytes(b"012345678"), "9 bytes"),
    (lambda f: (f / "unet/model.onnx").write_bytes(b"012345678x"), "damaged"),
    (lambda f: (f / "unet/model.onnx").unlink(), "is missing"),
    (lambda f: (f / "unet").rename(f / "vae"), "is missing"),
]


@pytest.mark.parametrize(("damage", "fault"), DAMAGES)
def test_an_error_names_the_file_the_fault_and_the_advice(folder, damage, fault):
    taken = stamps(folder)
    damage(folder)
    with pytest.raises(SourceError) as raised:
        verify(folder, taken, advice=ADVICE)
    assert str(raised.value).startswith(f"{folder}/unet/")
    assert raised.value.path.is_relative_to(folder / "unet")
    assert fault in str(raised.value)
    assert str(raised.value).endswith(f"; {ADVICE}.")


def test_files_without_a_stamp_must_be_allowed(folder):
    taken = stamps(folder)
    (folder / "notes.txt").write_text("")
    verify(folder, taken, advice=ADVICE)
    verify(folder, taken, advice=ADVICE, allowed=("notes.txt",))
    with pytest.raises(SourceError, match=r"notes\.txt is not"):
        verify(folder, taken, advice=ADVICE, allowed=())


def test_a_path_that_is_not_a_folder_is_refused(folder):
    for odd in (folder / "none", folder / "plan.json"):
        with pytest.raises(SourceError, match="cannot read"):
            stamps(odd)
        with pytest.raises(SourceError, match="missing"):
            verify(odd, {"x": (0, "")}, advice=ADVICE)


def test_a_pipe_is_refused_without_waiting(folder):
    taken = stamps(folder)
    (folder / "unet/deep/w").unlink()
    os.mkfifo(folder / "unet/deep/w")
    with pytest.raises(SourceError, match="regular"):
        stamps(folder)
    with pytest.raises(SourceError, match="regular"):
        verify(folder, taken, advice=ADVICE)


@pytest.mark.parametrize(
    "data",
    [None, [], 3, {"a": 3}, {"a": [1]}, {"a": ["1", "x"]}, {"a": [1, 2]}, {"/etc/x": [1, ""]}, {"a/../../x": [1, ""]}],
)
def test_invalid_stamps_are_refused(data):
    with pytest.raises(ValueError, match="invalid entry"):
        stamps_from_json(data)
