"""What an interpreter and a notebook show: a pipeline, a result, a report, and a progress bar."""

import re
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from calotype.errors import InputError
from calotype.report.progress import with_progress

LONG = "a" * 200


@pytest.fixture
def result(fake):
    return fake(["<script>x</script>", LONG], steps=1, seed=[7, 2**63])


def test_a_pipeline_shows_its_components(fake):
    lines = repr(fake).splitlines()
    assert "demo" in lines[0]
    assert {line.split()[0] for line in lines[1:]} == set(fake.plan.components)
    assert "fake" in repr(fake)
    assert fake._repr_html_().count("<tr>") == len(lines)


def test_a_result_shows_its_images_and_seeds(result, fake):
    text = repr(result)
    assert "2 images" in text
    assert "128 x 128" in text
    assert "7, 9223372036854775808" in text
    assert len(repr(replace(result, images=result.images * 50, seeds=result.seeds * 50))) < 300
    for output_type in ("np", "latent"):
        other = fake("x", steps=1, output_type=output_type)
        assert "1 image" in repr(other)
        assert "<img" not in other._repr_html_()


def test_html_is_escaped_and_has_a_part_of_many_images(result):
    page = result._repr_html_()
    assert page.count("<img") == 2
    assert "<script>" not in page
    assert LONG not in page
    many = replace(result, images=result.images * 50, seeds=result.seeds * 50)._repr_html_()
    assert many.count("<img") == 12
    assert "88 more" in many


def test_a_report_shows_its_table(result):
    report = result.report
    component = replace(report.components[0], error=8.4e-7, why="<i>")
    report = replace(report, components=(component, *report.components[1:]))
    assert repr(report) == str(report)
    for text in (str(report), report._repr_html_()):
        assert "max relative error 8e-07 against PyTorch float32" in text
    assert "<i>" not in report._repr_html_()


def test_a_progress_bar_in_a_terminal(fake, capsys):
    fake("x", steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    fake("x", steps=3)
    assert capsys.readouterr().err == ""


def test_a_progress_bar_in_a_notebook(fake, capsys, monkeypatch):
    shown = []
    shell = type("ZMQInteractiveShell", (), {})()
    display = ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda text, display_id: shown.append(text) or SimpleNamespace(update=shown.append)
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    fake("x", steps=3, progress=True)
    assert [re.findall(r"\d/\d", text) for text in shown] == [[], ["1/3"], ["2/3"], ["3/3"]]
    assert capsys.readouterr().err == ""


def test_a_failed_call_ends_its_bar():
    def events():
        raise InputError("no")
        yield

    with pytest.raises(InputError):
        list(with_progress(events()))


@pytest.mark.parametrize("value", [1, "yes", None])
def test_progress_is_true_or_false(fake, value):
    with pytest.raises(InputError) as caught:
        fake("x", progress=value)
    assert caught.value.argument == "progress"
