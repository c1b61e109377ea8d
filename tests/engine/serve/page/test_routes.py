"""The files of the page: their types and headers, and that a request reaches no other file."""

import re

import httpx
import pytest

import calotype
from calotype.serve import Engine
from calotype.serve.page import routes
from tests.helpers.server import serving

PATHS = [route.path for route in routes()]


@pytest.fixture(scope="module")
def client():
    engine = Engine(calotype.load("demo", backend="fake"))
    with serving(engine) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_served_with_a_strict_policy(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_the_page_needs_nothing_from_elsewhere(client):
    texts = {path: client.get(path).text for path in PATHS}
    used = {f"/{name}" for name in re.findall(r'(?:href|src)="(page/[^"]+)"', texts["/"])}
    imported = {f"/page/{name}" for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {*used, *imported, "/"} == set(PATHS)
    for path, text in texts.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, path


@pytest.mark.parametrize(
    "path", ["/page/", "/page/routes.py", "/page/../routes.py", "/page/%2e%2e/routes.py", "/page//etc/passwd"]
)
def test_no_other_file_is_served(client, path):
    assert client.get(path).status_code == 404
