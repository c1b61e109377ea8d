"""Half a minute of mixed traffic at 0.5, 1 and 2 times the server's capacity: every call ends with an image or 429."""

import json

import pytest
from typer.testing import CliRunner

from calotype.benchmarks.load.__main__ import LEVELS, app

pytestmark = pytest.mark.slow


def test_every_call_ends_with_an_image_or_is_refused(pipe):  # `pipe` traces the model
    done = CliRunner().invoke(app, ["--seconds", "9", "--clients", "6", "--max-waiting", "8"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [level["load"] for level in figures["levels"]] == list(LEVELS)
    for level in figures["levels"]:
        assert level["images"] > 0
        assert level["images"] + level["refused"] == level["calls"]
    assert {"per_minute", "low", "high"} <= figures["memory_mb"]["slope"].keys()
