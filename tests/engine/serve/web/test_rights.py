"""Who may use the service: API keys and their limits, the isolation of owners, hosts and origins."""

import base64
import hashlib

import pytest

from calotype.errors import InputError
from calotype.serve import Engine
from calotype.serve.service_settings import ServiceSettings
from calotype.serve.web.service.keys import Keys, Rate, new_key
from tests.helpers.server import events_of, serving

PROMPT = "a red ring"
KEYS = """
[alice]
sha256 = "{alice}"
[bob]
sha256 = "{bob}"
expires = 2100-01-01
[old]
sha256 = "{old}"
expires = 2020-01-01T00:00:00Z
[rare]
sha256 = "{rare}"
jobs_per_minute = 2
[one]
sha256 = "{one}"
max_jobs = 1
"""


def headers(name):
    return {"Authorization": f"Bearer {name}"}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    names = ("alice", "bob", "old", "rare", "one")
    path.write_text(KEYS.format(**{name: hashlib.sha256(name.encode()).hexdigest() for name in names}))
    return path


@pytest.fixture(scope="module")
def address(fake_pipe, key_file):
    with serving(Engine(fake_pipe), ServiceSettings(key_file=key_file)) as address:
        yield address


@pytest.fixture(scope="module")
def open_address(fake_pipe):
    settings = ServiceSettings(cors_origins=("https://friend.org",), allowed_hosts=("images.lan",))
    with serving(Engine(fake_pipe), settings) as address:
        yield address


def submitted(client, address, name, **body):
    return client.post(f"{address}/jobs", json={"prompt": PROMPT, "steps": 2, **body}, headers=headers(name))


@pytest.mark.parametrize("path", ["/jobs", "/options", "/metrics", "/v1/models", "/jobs/x", "/nothing"])
@pytest.mark.parametrize(
    "sent", [{}, headers("eve"), headers("old"), {"Authorization": "Bearer"}, {"Authorization": b"Basic \xff!"}]
)
def test_a_wrong_key_reaches_nothing(client, address, path, sent):
    answer = client.get(address + path, headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_may_be_the_password_of_basic_authentication(client, address):
    sent = {"Authorization": "Basic " + base64.b64encode(b"anybody:alice").decode()}
    assert client.get(f"{address}/jobs", headers=sent).status_code == 200


def test_health_needs_no_key(client, address):
    assert client.get(f"{address}/health/live").status_code == 200


def test_a_job_of_another_key_is_not_there(client, address):
    job = submitted(client, address, "alice").json()
    assert list(events_of(address, job["id"], headers("alice")))[-1][0] == "done"
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/events")]:
        answer = client.request(method, f"{address}/jobs/{job['id']}{path}", headers=headers("bob"))
        assert answer.status_code == 404
    assert job["id"] not in [
        each["id"] for each in client.get(f"{address}/jobs", headers=headers("bob")).json()["jobs"]
    ]
    url = client.get(f"{address}/jobs/{job['id']}", headers=headers("alice")).json()["images"][0]["url"]
    assert client.get(url, headers=headers("alice")).status_code == 200
    assert client.get(url).status_code == 200  # who knows the name may read it, as with any signed address
    assert client.get(url, headers=headers("bob")).status_code == 404
    assert client.get(url, headers=headers("eve")).status_code == 401


def test_a_key_has_a_rate(client, address):
    answers = [submitted(client, address, "rare") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30


def test_a_key_has_a_number_of_jobs_at_a_time(client, address):
    answers = [submitted(client, address, "one", steps=150, num_images=16) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 429, 429]
    assert answers[1].json()["error"]["limit"] == 1
    client.delete(f"{address}/jobs/{answers[0].json()['id']}", headers=headers("one"))
    list(events_of(address, answers[0].json()["id"], headers("one")))
    assert submitted(client, address, "one").status_code == 202


def test_a_key_has_a_priority(client, address):
    assert submitted(client, address, "alice", priority=1).json()["error"]["argument"] == "priority"
    assert submitted(client, address, "alice", priority=-1).status_code == 202


def test_a_rate_fills_again():
    rate = Rate(60_000_000.0)
    assert [rate.take() for _ in range(100)] == [0.0] * 100
    slow = Rate(1.0)
    assert slow.take() == 0.0
    assert 0 < slow.take() <= 60


def test_a_new_key_passes_its_own_table(tmp_path):
    key, table = new_key("carol")
    (tmp_path / "keys.toml").write_text(table)
    assert key not in table
    assert Keys.read(tmp_path / "keys.toml").check(f"Bearer {key}").name == "carol"


@pytest.mark.parametrize(
    "text",
    [
        "[a]\n",
        '[a]\nsha256 = "x"',
        '[a]\nsha256 = "' + "0" * 64 + '"\nrights = "all"',
        '[a]\nsha256 = "' + "0" * 64 + '"\nexpires = "2027-01-01"',
        '[a]\nsha256 = "' + "0" * 64 + '"\nmax_jobs = 0',
        "[a",
    ],
)
def test_a_wrong_key_file_is_an_error(tmp_path, text):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        Keys.read(tmp_path / "keys.toml")
    assert caught.value.argument == "key_file"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("images.lan:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_a_rebound_name_reaches_nothing(client, open_address, host, status):
    assert client.get(f"{open_address}/options", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 202),
        ("https://friend.org", 202),
        ("https://evil.example", 403),
        ("null", 403),
        ("https://friend.org.evil.example", 403),
        ("http://127.0.0.1:1", 403),
    ],
)
def test_pages_of_other_origins_submit_nothing(client, open_address, origin, status):
    sent = {} if origin is None else {"Origin": origin}
    answer = client.post(f"{open_address}/jobs", json={"prompt": PROMPT, "steps": 1}, headers=sent)
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://friend.org" else None)


def test_the_own_page_may_submit(client, open_address):
    answer = client.post(f"{open_address}/jobs", json={"prompt": PROMPT, "steps": 1}, headers={"Origin": open_address})
    assert answer.status_code == 202


def test_browsers_learn_that_other_origins_are_refused_unless_allowed(client, address, open_address):
    sent = {"Origin": "https://friend.org", "Access-Control-Request-Method": "POST"}
    assert client.options(f"{open_address}/jobs", headers=sent).status_code == 200
    assert "access-control-allow-origin" not in client.options(f"{address}/jobs", headers=sent).headers
