"""The examples of the server's guide run against a server."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import calotype
from calotype.serve import Engine
from calotype.serve.command.config import read_config
from calotype.serve.web.service.keys import Keys
from tests.helpers.server import serving

GUIDE = (Path(__file__).parents[4] / "docs" / "guides" / "server.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def address():
    with serving(Engine({"demo": calotype.load("demo", backend="fake")})) as address:
        yield address


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the guide opens files in a call
def test_the_python_runs(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("py"):
        exec(code.replace("http://127.0.0.1:8000", address), names)
    url, types, size = capsys.readouterr().out.splitlines()
    assert url.startswith(f"{address}/files/")
    assert types.endswith("'image_generation.completed']")
    assert size == "128x128"
    names["client"].close()


def test_the_commands_run(address):
    (command,) = blocks("sh")
    words = shlex.split(command.replace("http://127.0.0.1:8000", address))
    answer = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert answer["id"]


def test_the_configurations_are_read(tmp_path):
    config, keys = (tmp_path / "serve.toml"), (tmp_path / "keys.toml")
    config.write_text(blocks("toml")[0])
    keys.write_text(blocks("toml")[1])
    assert set(read_config(config, {}).models) == {"dreams", "canny"}
    assert Keys.read(keys) is not None
