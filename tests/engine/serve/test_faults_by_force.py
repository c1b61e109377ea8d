"""A server in a process of its own, and clients that leave, stall, send garbage, or are not who they say."""

import json
import socket
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress

import pytest

from calotype.benchmarks.load.server import Server
from calotype.serve.web.service.keys import new_key

TIMES = 200
POOL = 50  # anyio's pool has 40 threads
ENDED = ("done", "failed", "cancelled")
LONG = {"prompt": "a red ring", "steps": 1000}
SHORT = {"prompt": "a red ring", "steps": 2, "width": 64, "height": 64}

pytestmark = pytest.mark.slow


class Client:
    """A client with a key."""

    def __init__(self, server, key):
        self._server, self.key = server, key

    def __call__(self, method, path, body=None, kind="application/json"):
        """Return the status, and the body as JSON data where it is JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": kind}
        request = urllib.request.Request(self._server.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content, status = answer.read(), answer.status
        except urllib.error.HTTPError as refused:
            content, status = refused.read(), refused.code
        with suppress(ValueError):
            content = json.loads(content)
        return status, content

    def finished(self, body):
        """Run a job, and return its data."""
        _, job = self("POST", "/jobs", body)
        return wait_for(lambda: (data := self("GET", f"/jobs/{job['id']}")[1])["state"] == "done" and data)

    def open(self, method, path, length=None, body=b""):
        """Send the head of a request and the first bytes of its body, and return the connection."""
        connection = socket.create_connection(self._server.address.removeprefix("http://").split(":"), timeout=60)
        length = len(body) if length is None else length
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection


def wait_for(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    keys = {name: new_key(name) for name in ("alice", "bob", "carol")}
    tables = [table + ("expires = 2020-01-01\n" if name == "carol" else "") for name, (_, table) in keys.items()]
    (folder / "keys.toml").write_text("".join(tables))
    options = ["--backend", "fake", "--max-steps", "1000", "--max-waiting", "1000", "--body-timeout-s", "3"]
    options += ["--key-file", str(folder / "keys.toml"), "--files-folder", str(folder / "files")]
    return folder, options, {name: key for name, (key, _) in keys.items()}


@pytest.fixture(scope="module")
def server(options):
    folder, arguments, _ = options
    server = Server(*arguments, log=folder / "log")
    server.wait_until_ready()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def alice(server, options):
    client = Client(server, options[2]["alice"])
    client.finished(LONG)  # imports and compiles what is only needed once
    return client


@pytest.fixture(autouse=True)
def nothing_is_left(server, alice):
    """After each test: no job runs, and the process holds what it held before."""
    before = server.usage()
    yield
    wait_for(lambda: all(job["state"] in ENDED for job in alice("GET", "/jobs")[1]["jobs"]))
    wait_for(lambda: server.usage().files <= before.files + 2)
    after = server.usage()
    assert after.threads <= POOL
    assert after.memory_bytes <= before.memory_bytes + (64 << 20)
    assert alice.finished(SHORT)["images"]


def test_clients_that_leave_end_their_jobs(alice):
    body = json.dumps({"prompt": "a red ring", "num_inference_steps": 1000, "size": "64x64"}).encode()
    for _ in range(TIMES):
        alice.open("POST", "/v1/images/generations", body=body).close()
    jobs = alice("GET", "/jobs")[1]["jobs"][:TIMES]
    ends = [wait_for(lambda job=job: (state := state_of(alice, job["id"])) in ENDED and state) for job in jobs]
    assert ends.count("cancelled") > 0.9 * len(ends) > 0


def test_cancelled_jobs_end(alice):
    jobs = [alice("POST", "/jobs", LONG)[1]["id"] for _ in range(TIMES)]
    assert {alice("DELETE", f"/jobs/{job}")[0] for job in jobs} == {200}
    for job in jobs:
        wait_for(lambda job=job: state_of(alice, job) in ENDED)
    assert {state_of(alice, job) for job in jobs[-20:]} == {"cancelled"}


def state_of(client, job):
    return client("GET", f"/jobs/{job}")[1]["state"]


def test_slow_readers_delay_nobody(alice):
    _, job = alice("POST", "/jobs", {**LONG, "preview_every": 1})
    readers = [alice.open("GET", f"/jobs/{job['id']}/events") for _ in range(20)]
    begin = time.monotonic()
    assert alice.finished(SHORT)["images"]
    assert state_of(alice, job["id"]) in ("running", "done", "waiting")
    assert time.monotonic() - begin < 60
    alice("DELETE", f"/jobs/{job['id']}")
    for reader in readers:
        reader.close()


def test_uploads_that_stop_are_ended(alice):
    stalled = [alice.open("POST", "/jobs", length=1000, body=b'{"prompt": ') for _ in range(20)]
    answers = [connection.recv(100) for connection in stalled]
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    for connection in stalled:
        connection.close()
    for _ in range(20):
        alice.open("POST", "/jobs", length=1000, body=b'{"prompt": ').close()


def test_large_bodies(alice):
    image = "A" * (50 << 20)
    status, answer = alice("POST", "/jobs", {"prompt": "a red ring", "image": image})
    assert (status, answer["error"]["type"]) == (400, "InputError")
    assert alice("POST", "/jobs", b"x" * (50 << 20))[0] == 400
    with closing(alice.open("POST", "/jobs", length=100 << 20)) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/jobs", "application/json", b"{"),
        ("/jobs", "application/json", b"[" * 100_000),
        ("/jobs", "application/json", b'{"prompt": "\\ud800"'),
        ("/jobs", "text/plain", b"{}"),
        ("/v1/images/edits", "multipart/form-data", b"--x\r\n"),
        ("/v1/images/edits", "multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nx"),
        ("/v1/images/edits", "multipart/form-data; boundary=x", b"--y--"),
    ],
)
def test_malformed_bodies_are_refused(alice, path, kind, body):
    status, answer = alice("POST", path, body, kind)
    assert 400 <= status < 500
    assert answer["error"]


def test_nobody_sees_what_is_anothers(alice, server, options):
    job, keys = alice.finished(SHORT), options[2]
    bob = Client(server, keys["bob"])
    file = job["images"][0]["url"].removeprefix(server.address)
    assert alice("GET", file)[0] == 200
    for method, path in (("GET", file), ("GET", f"/jobs/{job['id']}"), ("DELETE", f"/jobs/{job['id']}")):
        assert bob(method, path)[0] == 404
    assert bob("GET", f"/jobs/{job['id']}/events")[0] == 404
    assert bob("GET", "/jobs")[1]["jobs"] == []
    for key in (keys["carol"], "calo-unknown", ""):
        assert Client(server, key)("POST", "/jobs", SHORT)[0] == 401


def test_after_a_kill_old_jobs_are_gone_and_files_remain(options):
    folder, arguments, keys = options
    files = folder / "other-files"
    arguments = [*arguments[:-1], str(files)]
    first = Server(*arguments, log=folder / "log-1")
    first.wait_until_ready()
    client = Client(first, keys["alice"])
    done = client.finished(SHORT)
    running = [client("POST", "/jobs", {**LONG, "steps": 20})[1]["id"] for _ in range(20)]
    wait_for(lambda: any(state_of(client, job) == "done" for job in running))
    (next(files.glob("*/")) / "unfinished.png.part").write_bytes(b"x")
    first.kill()
    second = Server(*arguments, log=folder / "log-2")
    second.wait_until_ready()
    client = Client(second, keys["alice"])
    try:
        assert {client("GET", f"/jobs/{job}")[0] for job in (done["id"], *running)} == {410}
        assert client("GET", done["images"][0]["url"].removeprefix(first.address))[1].startswith(b"\x89PNG")
        assert not list(files.rglob("*.part"))
        assert client.finished(SHORT)["images"]
    finally:
        assert second.stop() == 0
