"""Limits of bodies, images, time and the queue; and clients that go away."""

import base64
import io
import json
import socket
import struct
import zlib

import pytest
from PIL import Image

from calotype.errors import Cancelled
from calotype.serve import Engine, EngineSettings
from calotype.serve.service_settings import ServiceSettings
from tests.helpers.server import serving

PROMPT = "a red ring"
LIMITS = ServiceSettings(max_body_bytes=100_000, body_timeout_s=0.5, max_upload_pixels=300 * 300)


@pytest.fixture
def engine(fake_pipe):
    return Engine(fake_pipe)


@pytest.fixture
def address(engine):
    with serving(engine, LIMITS) as address:
        yield address


def bomb():
    """Return a PNG whose header has 50,000 x 50,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def connected(address):
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def status_from(connection):
    return int(connection.makefile("rb").readline().split()[1])


def request_bytes(path, body, *, method="POST"):
    data = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def running_job(engine):
    """Wait until a job has made a step, and return it."""
    while not (jobs := [job for job in engine.jobs() if job.request.owner and job.status.step]):
        pass
    return jobs[-1]


def test_a_body_has_a_limit_with_its_length(client, address):
    answer = client.post(f"{address}/jobs", json={"prompt": PROMPT, "image": "A" * 200_000})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_a_body_has_a_limit_without_its_length(address):
    with connected(address) as connection:
        head = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert status_from(connection) == 413


def test_a_form_has_the_limit_as_well(client, address):
    files = {"image": ("x.png", b"\0" * 200_000)}
    assert client.post(f"{address}/v1/images/edits", files=files).status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(address):
    with connected(address) as connection:
        connection.sendall(request_bytes("/jobs", {"prompt": PROMPT})[:-5])
        assert status_from(connection) == 408


@pytest.mark.parametrize("path", ["/jobs", "/v1/images/edits"])
def test_a_decompression_bomb_is_refused_by_its_header(client, address, path):
    if path == "/jobs":
        body = {"prompt": PROMPT, "image": base64.b64encode(bomb()).decode()}
        answer = client.post(address + path, json=body)
    else:
        answer = client.post(address + path, files={"image": ("x.png", bomb())})
    assert answer.status_code == 400
    assert "pixels" in answer.text


def test_many_small_images_have_the_limit_together(client, address):
    stream = io.BytesIO()
    Image.new("RGB", (256, 256)).save(stream, "PNG")
    image = base64.b64encode(stream.getvalue()).decode()
    body = {"prompt": [PROMPT] * 2, "image": [image, image], "steps": 1}
    answer = client.post(f"{address}/jobs", json=body)
    assert answer.json()["error"]["argument"] == "image"


def test_a_job_ends_after_the_longest_time(client, fake_pipe):
    with serving(Engine(fake_pipe), ServiceSettings(max_job_s=0.001)) as address:
        answer = client.post(f"{address}/v1/images/generations", json={"prompt": PROMPT, "steps": 150})
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"


def test_a_full_queue_is_said_with_the_time_to_try_again(client, fake_pipe):
    with serving(Engine(fake_pipe, EngineSettings(max_waiting=0))) as address:
        answer = client.post(f"{address}/jobs", json={"prompt": PROMPT})
        metrics = client.get(f"{address}/metrics").text
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert 'calotype_refused_total{reason="QueueFullError"} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_job(engine, address, stream):
    body = {"prompt": PROMPT, "steps": 150, "n": 16, "stream": stream}
    with connected(address) as connection:
        connection.sendall(request_bytes("/v1/images/generations", body))
        job = running_job(engine)
    with pytest.raises(Cancelled):
        job.result(30)


def test_a_job_outlives_the_stream_of_its_events_unless_it_says_otherwise(client, engine, address):
    for cancel in (False, True):
        body = {"prompt": PROMPT, "steps": 100, "cancel_on_disconnect": cancel}
        job_id = client.post(f"{address}/jobs", json=body).json()["id"]
        with connected(address) as connection:
            connection.sendall(request_bytes(f"/jobs/{job_id}/events", {}, method="GET"))
            assert status_from(connection) == 200
        job = engine.job(job_id)
        if cancel:
            with pytest.raises(Cancelled):
                job.result(30)
        else:
            assert job.result(30).seeds


def test_every_answer_has_a_request_id(client, address):
    assert client.get(f"{address}/jobs", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(client.get(f"{address}/nothing", headers={"X-Request-Id": "b a d"}).headers["x-request-id"]) == 16


def test_metrics_count_jobs(client, address):
    answer = client.post(f"{address}/v1/images/generations", json={"prompt": PROMPT, "steps": 1, "n": 2})
    assert answer.status_code == 200
    text = client.get(f"{address}/metrics").text
    assert 'calotype_jobs_total{model="default",state="done"} 1.0' in text
    assert 'calotype_images_total{model="default"} 2.0' in text
    assert 'calotype_stage_seconds_count{model="default",stage="steps"} 1.0' in text
    assert 'calotype_batch_images_bucket{le="2.0",model="default"}' in text
    assert "calotype_jobs_waiting 0.0" in text
    assert "process_resident_memory_bytes" in text
