"""The container's files name what exists: extras, options, routes, folders."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from starlette.routing import Route

import calotype
from calotype.serve import Engine
from calotype.serve.command.config import read_config
from calotype.serve.web.app import create_app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
STEPS = [
    line.partition(" ")
    for line in re.sub(r"\\\n", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]


def steps(name):
    return [rest.strip() for step, _, rest in STEPS if step == name]


@pytest.fixture
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (DEPLOY / "Dockerfile").read_text()
    used = {extra for extras in re.findall(r"EXTRAS=([a-z]+(?:,[a-z]+)*)", text) for extra in extras.split(",")}
    assert used <= set(known)


def test_the_server_gets_a_configuration_that_it_reads():
    assert json.loads(steps("ENTRYPOINT")[0]) == ["calotype", "serve"]
    option, path = json.loads(steps("CMD")[0])
    assert option == "--config"
    assert any(step.split() == ["deploy/serve.toml", path] for step in steps("COPY"))
    config = read_config(DEPLOY / "serve.toml", {})
    assert config.host == "0.0.0.0"
    assert str(config.port) in steps("EXPOSE")
    assert str(config.files_folder) in json.loads(steps("VOLUME")[0])


def test_compose_mounts_what_exists_and_opens_loopback_only(compose):
    server = compose["services"]["calotype"]
    config = read_config(DEPLOY / "serve.toml", {})
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for source, target, *_ in (volume.split(":") for volume in service["volumes"]):
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], target
    assert int(server["stop_grace_period"].removesuffix("s")) > config.drain_s


def test_prometheus_asks_for_a_route_by_a_known_name(compose):
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    engine = Engine(calotype.load("demo", backend="fake"))
    paths = {route.path for route in create_app(engine).routes if isinstance(route, Route)}
    engine.close()
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    config = read_config(DEPLOY / "serve.toml", {})
    assert job["metrics_path"] in paths
    assert host in compose["services"]
    assert host in config.allowed_hosts
    assert int(port) == config.port


def test_ray_gets_a_configuration_that_it_reads():
    (application,) = yaml.safe_load((DEPLOY / "serve.yaml").read_text())["applications"]
    assert application["import_path"] == "calotype.serve.ray:app"
    assert read_config(None, application["args"]).max_workers == 8
