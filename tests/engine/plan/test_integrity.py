"""A folder is what was written into it, or the first file that is not is named."""

import json
import os

import pytest

from calotype.errors import SourceError
from calotype.plan.integrity import stamps, stamps_from_json, verify

MEND = "`calotype build demo` makes it again"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "a plän"
    (made / "unet" / "deep").mkdir(parents=True)
    (made / "plan.json").write_text("{}")
    (made / "unet" / "model.onnx").write_bytes(b"0123456789")
    (made / "unet" / "deep" / "w").write_bytes(b"")
    return made


def test_stamps_are_of_every_file_and_survive_json(folder):
    taken = stamps(folder, beside=("plan.json",))
    assert {name: size for name, (size, _) in taken.items()} == {"unet/deep/w": 0, "unet/model.onnx": 10}
    assert taken["unet/deep/w"][1] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert stamps_from_json(json.loads(json.dumps(taken))) == taken
    assert set(stamps(folder)) - set(taken) == {"plan.json"}
    verify(folder, taken, mend=MEND)
    verify(folder, taken, mend=MEND, beside=("plan.json",))


DAMAGES = [
    (lambda f: (f / "unet/model.onnx").write_bytes(b"012345678"), "is 9 bytes long and should be 10"),
    (
        lambda f: (f / "unet/model.onnx").write_bytes(b"012345678x"),
        "damaged: its bytes are not those that were written",
    ),
    (lambda f: (f / "unet/model.onnx").unlink(), "is missing"),
    (lambda f: (f / "unet").rename(f / "vae"), "is missing"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[told for _, told in DAMAGES])
def test_the_fault_the_file_and_the_mend_are_one_sentence(folder, damage, told):
    taken = stamps(folder)
    damage(folder)
    with pytest.raises(SourceError) as raised:
        verify(folder, taken, mend=MEND)
    assert str(raised.value).startswith(f"{folder}/unet/")
    assert told in str(raised.value)
    assert str(raised.value).endswith(f"; {MEND}.")


def test_what_nobody_stamped_is_allowed_or_not(folder):
    taken = stamps(folder)
    (folder / "notes.txt").write_text("")
    verify(folder, taken, mend=MEND)
    verify(folder, taken, mend=MEND, beside=("notes.txt",))
    with pytest.raises(SourceError, match=r"notes\.txt does not belong there; `calotype"):
        verify(folder, taken, mend=MEND, beside=())


def test_a_folder_that_is_no_folder_is_told(folder):
    for odd in (folder / "none", folder / "plan.json"):
        with pytest.raises(SourceError, match="cannot be read"):
            stamps(odd)
        with pytest.raises(SourceError, match="missing"):
            verify(odd, {"x": (0, "")}, mend=MEND)


def test_a_pipe_is_told_and_not_waited_for(folder):
    taken = stamps(folder)
    (folder / "unet/deep/w").unlink()
    os.mkfifo(folder / "unet/deep/w")
    with pytest.raises(SourceError, match="it is no file"):
        stamps(folder)
    with pytest.raises(SourceError, match=f"no file\\); {MEND}"):
        verify(folder, taken, mend=MEND)


@pytest.mark.parametrize(
    "said",
    [None, [], 3, {"a": 3}, {"a": [1]}, {"a": ["1", "x"]}, {"a": [1, 2]}, {"/etc/x": [1, ""]}, {"a/../../x": [1, ""]}],
)
def test_stamps_that_are_none_are_refused(said):
    with pytest.raises(ValueError, match="not the sizes and digests"):
        stamps_from_json(said)
