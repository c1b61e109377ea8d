"""Random bodies from the OpenAPI description: each answer is one that the description names, and none is a 500."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import calotype
from calotype.serve import Engine
from calotype.serve.service_settings import ServiceSettings
from calotype.serve.web.routes.description import describe
from tests.helpers.server import serving

SMALL = ServiceSettings(max_side=128, max_steps=2, max_images=2, max_job_s=5.0)
PATHS = describe()["paths"]
IN_JSON = ("/jobs", "/v1/images/generations")
numbers = st.integers() | st.just(10**400) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)
# Values that are right for some field.
likely = st.sampled_from(
    [0, 1, 2, -1, 0.5, 64, 1e30, 10**400, "a", "auto", "64x64", "euler", True, [1], [], {}, "data:,", "A" * 8]
)


def fields_of(path):
    return PATHS[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]


@pytest.fixture(scope="module")
def client():
    engine = Engine(calotype.load("demo", backend="fake"))
    with serving(engine, SMALL) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path", IN_JSON)
def test_no_body_is_an_internal_error(client, path):
    one = st.dictionaries(st.sampled_from(sorted(fields_of(path))), likely | values, max_size=3)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(one)
    def check(body):
        answer = client.post(path, json={"prompt": "a ring", "steps": 1, **body} if "stream" not in body else body)
        assert answer.status_code < 500 or answer.json()["error"].get("code") == "DeadlineError", answer.text
        assert str(answer.status_code) in PATHS[path]["post"]["responses"]

    check()


def test_the_description_is_served(client):
    assert client.get("/openapi.json").json()["paths"].keys() == PATHS.keys()
