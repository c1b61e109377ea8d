"""Tests that a run is read back as it was written, and that other files are refused."""

import json

import numpy as np
import pytest

from calotype.benchmarks.measure.record import ROWS_FILE, RunRecord, file_name, read, write
from calotype.errors import InputError
from tests.helpers.benchmarks import runs


@pytest.fixture
def a_run() -> RunRecord:
    base = runs.samples(0.4)
    fast = runs.row("calotype:openvino:bf16", 0.2, ratio=runs.ratio(base, runs.samples(0.2)), notes=("a note",))
    return runs.recorded(fast, runs.row("optimum:fp32", None, None, status="cannot", reason="it does not fit"))


def test_a_run_is_read_back_as_it_was_written(a_run, tmp_path):
    path = write(a_run, tmp_path / "run")
    for place in (path, path.parent):
        again = read(place)
        assert (again.run, again.rows, again.folder) == (a_run.run, a_run.rows, path.parent)


def test_every_line_is_an_object_with_its_kind_and_schema(a_run, tmp_path):
    lines = [json.loads(line) for line in write(a_run, tmp_path).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["run", "row", "row"]
    assert {line["schema"] for line in lines} == {2}


def test_a_figure_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write(runs.recorded(runs.row("a:b:fp32", psnr=float("inf"))), tmp_path)
    assert not list(tmp_path.iterdir())


def change_lines(path, **change) -> None:
    lines = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        ({"schema": 3}, "schema"),
        ({"color": "red"}, "unknown fields"),
        ({"kind": "row"}, "benchmark run"),
        ({"kind": "run"}, "benchmark run"),
    ],
)
def test_another_schema_is_refused(a_run, tmp_path, change, keyword):
    path = write(a_run, tmp_path)
    change_lines(path, **change)
    with pytest.raises(InputError, match=keyword):
        read(path)


def test_another_file_is_refused(a_run, tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "nothing")
    (tmp_path / ROWS_FILE).write_text("{ not json")
    with pytest.raises(InputError, match="benchmark run"):
        read(tmp_path)
    text = write(a_run, tmp_path).read_text()
    (tmp_path / ROWS_FILE).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="benchmark run"):
        read(tmp_path)


def test_images_are_listed_in_the_order_of_the_prompts_for_one_contender(tmp_path):
    black = np.zeros((8, 8, 3), np.uint8)
    runs.save_images(tmp_path, "demo-128", "calotype:openvino:fp32", [black] * 11)
    runs.save_images(tmp_path, "demo-128", "calotype:openvino:fp32-channels-last", [black])
    runs.save_images(tmp_path, "demo-128", "reference", [black])
    row = runs.row("calotype:openvino:fp32")
    recorded = runs.recorded(row, folder=tmp_path)
    stem = file_name("calotype:openvino:fp32")
    assert [path.name for path in recorded.images(row)] == [f"{stem}-{i}.png" for i in range(11)]
    assert len(recorded.reference(row)) == 1
    assert runs.recorded(row).images(row) == []


def test_names_are_safe_as_files():
    assert file_name("a/../b:c d") == "a_.._b_c_d"
