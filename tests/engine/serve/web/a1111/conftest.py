"""A server with two models, one of them with a ControlNet, and LoRAs."""

import httpx
import pytest

import calotype
from calotype.serve import Engine, ModelCatalog
from tests.helpers.server import serving


@pytest.fixture(scope="module")
def engine(demo_folder):
    models = {
        "demo": calotype.load("demo", backend="fake"),
        "edges": calotype.load("demo", backend="fake", controlnet="demo-canny"),
    }
    return Engine(ModelCatalog(models, {"outline": demo_folder / "outline.safetensors"}))


@pytest.fixture(scope="module")
def address(engine):
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
