"""`calotype serve`: its configuration, and a process that starts, drains on SIGTERM, and is killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from calotype.errors import InputError
from calotype.serve.command import ServeConfig
from calotype.serve.command.config import help_of_fields, models_from, read_config, types_of_fields
from tests.helpers.server import events_of

PROMPT = "a red ring"


def test_a_file_and_options_make_one_configuration(tmp_path):
    (tmp_path / "serve.toml").write_text(
        'port = 9000\nfiles_expire_s = 60\ncors_origins = ["https://a.org"]\nlora_folder = "loras"\n'
        '[models]\nsmall = "demo"\n[models.drawn]\nmodel = "demo"\ncontrolnet = ["demo-canny"]\n'
    )
    config = read_config(tmp_path / "serve.toml", {"port": 9001, "backend": "fake"})
    assert config == ServeConfig(
        port=9001,
        backend="fake",
        files_expire_s=60.0,
        cors_origins=("https://a.org",),
        lora_folder=Path("loras"),
        models={"small": "demo", "drawn": {"model": "demo", "controlnet": ["demo-canny"]}},
    )


def test_every_field_has_a_type_and_help():
    names = {each.name for each in fields(ServeConfig)}
    assert set(types_of_fields()) == names
    assert set(help_of_fields()) == names


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("prot = 1", "prot"),
        ('port = "x"', "port"),
        ("port = 70000", "port"),
        ("max_side = true", "max_side"),
        ('cors_origins = "x"', "cors_origins"),
        ("models = {}", "models"),
        ("models = {a = 1}", "models"),
        ("port = ", "config"),
        ('host = "0.0.0.0"', "host"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, text, argument):
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(tmp_path / "serve.toml", {})
    assert caught.value.argument == argument


def test_beyond_loopback_needs_a_key_file_or_a_word():
    assert ServeConfig(host="0.0.0.0", allow_anonymous=True).host == "0.0.0.0"
    assert ServeConfig(host="0.0.0.0", key_file=Path("keys.toml")).key_file == Path("keys.toml")


def test_models_are_named_by_their_files():
    assert models_from(["demo", "ink=/models/x", "/models/dreams.safetensors"]) == {
        "demo": "demo",
        "ink": "/models/x",
        "dreams": "/models/dreams.safetensors",
    }


def started(folder):
    """Start a server, and return the process and its address once it is ready."""
    command = [sys.executable, "-P", "-m", "calotype", "serve", "--port", "0", "--backend", "fake", "--offline"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    address = ""
    for line in process.stderr:
        entry = json.loads(line) if line.startswith("{") else {}
        address = entry.get("address", address)
        if entry.get("event") == "ready":
            return process, address
    raise AssertionError(process.wait())


def test_a_killed_server_leaves_nothing_and_a_terminated_one_finishes_its_jobs(tmp_path):
    process, address = started(tmp_path)
    job = httpx.post(f"{address}/jobs", json={"prompt": PROMPT, "steps": 2}, timeout=60).json()
    assert [name for name, _ in events_of(address, job["id"])][-1] == "done"
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob("calotype-serve-*"))) == 1
    process, address = started(tmp_path)
    assert len(list(tmp_path.glob("calotype-serve-*"))) == 1  # its own
    assert httpx.get(f"{address}/jobs/{job['id']}").status_code == 410
    for _ in range(3):
        httpx.post(f"{address}/jobs", json={"prompt": PROMPT, "steps": 100}, timeout=60).raise_for_status()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    ended = [entry for line in log.splitlines() if (entry := json.loads(line))["event"] == "job"]
    assert process.returncode == 0
    assert [entry["state"] for entry in ended] == ["done"] * 3
    assert not list(tmp_path.glob("calotype-serve-*"))


def test_a_model_that_cannot_be_opened_ends_the_command(tmp_path):
    command = [sys.executable, "-P", "-m", "calotype", "serve", "--port", "0", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none" in done.stderr.splitlines()[-1]
