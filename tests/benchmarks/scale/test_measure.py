"""How seconds grow: the exponents of works whose times are known, and a real axis of the demonstration model."""

import json

import pytest

from calotype.benchmarks.scale.axes import AXES, Work, axis
from calotype.benchmarks.scale.measure import exponent, line, measure, measure_axis, operations
from calotype.errors import InputError
from calotype.export.sources.source import find

BASE = Work(size=256)


def test_the_axes_change_one_number_each():
    for name in AXES:
        along = axis(name, BASE)
        changed = [{k for k, v in work.to_json().items() if v != BASE.to_json()[k]} for work in along.works]
        assert len(set().union(*changed)) == 1
        assert sorted(set(along.amounts)) == list(along.amounts)
        assert min(along.amounts) > 0
    assert axis("pixels", BASE, (64, 128)).amounts == (4096, 16384)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_the_exponent_is_that_of_a_power(power):
    assert exponent((1, 2, 4, 8), [3 * n**power for n in (1, 2, 4, 8)]) == pytest.approx(power)


@pytest.mark.parametrize(("power", "marked"), [(1, False), (2, True)])
def test_what_grows_faster_than_its_work_is_marked(power, marked):
    def run(job):
        return {"seconds": [job["work"]["batch"] ** power] * 2, "peak_bytes": 1 << 30}

    row = measure_axis(axis("batch", BASE), {}, lambda work: 7 * work.batch, run)
    assert row["faster_than_its_work"] is marked
    assert row["exponent"] == pytest.approx(power)
    assert row["memory_exponent"] == pytest.approx(0)
    assert ("faster" in line({**row, "model": "demo"})) is marked


def test_operations_grow_with_every_part_of_the_work():
    demo = find("demo")

    def count(**more):
        return operations(demo, Work(**{"size": 64, "steps": 2, **more}))

    assert count(batch=2) > 1.8 * count()
    assert 1.4 * count() < count(steps=4) < 2 * count()
    assert count(size=128) > 3 * count()
    assert count(chunks=2) > count()


@pytest.mark.slow
def test_an_axis_of_the_demonstration_model(tmp_path):
    results = measure(tmp_path, models=["demo"], backend="fake", rounds=1, row_filter="demo prompt")
    (row,) = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert row == results["rows"][0]
    assert all(seconds > 0 for seconds in row["seconds"])
    assert all(peak > 50 << 20 for peak in row["peak_bytes"])
    assert 0 < row["expected"] < 0.5


def test_a_filter_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="demo batch"):
        measure(tmp_path, models=["demo"], row_filter="no such row")
