"""The frontier of fitted samplers: every rival has its points, and the files can be read again."""

import io
import json

import pytest
from PIL import Image

from calotype.benchmarks.scripts.fitted import (
    BEST,
    CACHE,
    FITTED,
    FORECAST,
    PLAIN,
    SAME,
    FrontierPoint,
    fit_all,
    measure,
    settings_for,
    table,
    with_best_plain,
    write,
)
from tests.helpers.fits import fit_for, store


def point(line, count, psnr_db, /, **setting):
    return FrontierPoint(line=line, setting=setting, calls=count, seconds=[count / 100] * 4, psnr_db=psnr_db)


POINTS = [
    point("full", 20, [100.0] * 4, steps=20),
    point(FITTED, 10, [40.0, 45.0, 50.0, 55.0], steps=20, calls=10),
    point(FITTED, 8, [30.0, 35.0, 40.0, 45.0], steps=20, calls=8),
    point("unipc", 10, [20.0, 25.0, 30.0, 35.0], steps=10, scheduler="unipc"),
    point("deis", 10, [22.0, 22.0, 22.0, 22.0], steps=10, scheduler="deis"),
    point(CACHE, 20, [24.0, 30.0, 30.0, 30.0], steps=20, cache_interval=2),
]


def test_every_line_has_a_point_for_each_number_of_calls():
    full, *points = settings_for("unipc", 20, (8, 10), (2, 3))
    assert (full.calls, full.setting) == (20, {"steps": 20})
    for line in (FITTED, SAME, FORECAST, *(name for name in PLAIN if name != "unipc")):
        assert [each.calls for each in points if each.line == line] == [8, 10], line
    assert [each.setting["cache_interval"] for each in points if each.line == CACHE] == [2, 3]
    assert "unipc" not in {each.line for each in points}  # it is the same sampler


def test_every_point_is_measured_against_the_full_schedule(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    store(fit_for(fake.plan, steps=4, calls=2))
    points = measure(fake, list(settings_for("euler", 4, (2,), ())), "euler", images=2)
    assert all(len(each.seconds) == len(each.psnr_db) == 2 for each in points)
    assert points[0].psnr_db == [100.0, 100.0]
    assert all(0 < db <= 100 for each in points[1:] for db in each.psnr_db)


def test_a_refused_fit_is_left_out(fake, capsys):
    assert fit_all(fake, "lcm", 4, (2,)) == []
    assert "2 calls" in capsys.readouterr().out


def test_the_best_plain_sampler_is_that_of_nine_in_ten_images():
    best = [each for each in with_best_plain(POINTS) if each.line == BEST]
    assert [each.setting["scheduler"] for each in best] == ["deis"]
    assert not {"unipc", "deis"} & {each.line for each in with_best_plain(POINTS)}


def test_lines_and_plots_are_written(tmp_path):
    write(tmp_path / "run", POINTS, {"steps": 20})
    about, *lines = map(json.loads, (tmp_path / "run" / "frontier.jsonl").read_text().splitlines())
    assert about == {"steps": 20}
    assert [(line["line"], line["calls"]) for line in lines] == [(each.line, each.calls) for each in POINTS]
    assert lines[1]["psnr_db"] == POINTS[1].psnr_db
    assert lines[1]["seconds"] == POINTS[1].seconds
    assert lines[1]["median_db"] == pytest.approx(47.5)
    assert lines[1]["p10_db"] == pytest.approx(41.5)
    for name in ("calls-p10", "calls-median", "seconds-p10", "seconds-median"):
        plot = Image.open(io.BytesIO((tmp_path / "run" / f"{name}.png").read_bytes()))
        assert (plot.format, plot.width > 600) == ("PNG", True)


def test_the_table_has_a_row_for_each_point():
    head, _, *rows = table(POINTS).splitlines()
    assert len(rows) == len(POINTS)
    assert {row.count("|") for row in rows} == {head.count("|")}
    assert rows[1] == "| fitted | `steps=20, calls=10` | 10 | 0.100 | 47.5 | 41.5 | 40.0 |"
