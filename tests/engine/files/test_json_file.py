"""JSON files from strangers: a file that is not regular, too large or too deep raises a `SourceError`."""

import os

import pytest

from calotype.errors import SourceError
from calotype.files.json_file import read_json

PURPOSE = "it describes the model"


def refused(path, **options) -> str:
    with pytest.raises(SourceError) as caught:
        read_json(path, PURPOSE, **options)
    assert str(path) in str(caught.value)
    assert PURPOSE in str(caught.value)
    return str(caught.value)


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, {"b": -Infinity}]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", PURPOSE) == {"a": [1, {"b": float("-inf")}]}


@pytest.mark.parametrize("depth", [101, 900, 100_000])
def test_deep_nesting_is_refused(depth, tmp_path):
    (tmp_path / "a.json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    assert "deep" in refused(tmp_path / "a.json")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    assert "regular" in refused(tmp_path / "a.json")


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no disk space
    assert str(1 << 40) in refused(path)
    path.write_text('{"a": 1}')
    assert read_json(path, PURPOSE, limit_bytes=8) == {"a": 1}
    assert "8 bytes" in refused(path, limit_bytes=7)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' + b"1" * 5000 + b"}"])
def test_other_content_than_an_object_is_refused(data, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    refused(tmp_path / "a.json")


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    refused(tmp_path)
    assert "missing" in refused(tmp_path / "a.json")
