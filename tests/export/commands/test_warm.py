"""`calotype warm` opens every network and compiles the sizes that it is given."""

import pytest
from typer.testing import CliRunner

from calotype.errors import InputError
from calotype.export.commands.cli import app


def warm(*arguments):
    return CliRunner().invoke(app, ["warm", *arguments])


def test_every_network_is_opened_and_every_size_compiled(saved_plan):
    done = warm(str(saved_plan), "--size", "64", "--size", "96x64")
    assert done.exit_code == 0, done.output
    assert "vae_encoder" in done.output
    assert "64 x 64" in done.output
    assert "96 x 64" in done.output


def test_an_odd_size_is_refused(saved_plan):
    done = warm(str(saved_plan), "--size", "64by64")
    assert isinstance(done.exception, InputError)
    assert done.exception.argument == "size"


@pytest.mark.parametrize("size", ["13", "64x100000"])
def test_a_size_that_the_model_lacks_is_refused(saved_plan, size):
    assert isinstance(warm(str(saved_plan), "--size", size).exception, InputError)


def test_a_wrong_size_is_refused_before_the_trace(monkeypatch):
    monkeypatch.setattr("calotype.backends.components.Components.open_used", lambda *_: pytest.fail("opened"))
    assert isinstance(warm("demo", "--size", "13").exception, InputError)


def test_a_wrong_precision_is_refused(saved_plan):
    assert warm(str(saved_plan), "--precision", "bf17").exception.argument == "precision"
