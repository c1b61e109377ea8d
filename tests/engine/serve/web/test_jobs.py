"""`/jobs` and `/files`, by a real server: a job's life, its events, its images, and the errors of requests."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from calotype.serve import Engine
from calotype.serve.web.service import ServiceSettings
from tests.helpers.server import events_of, serving

PROMPT = "a red ring"


@pytest.fixture(scope="module")
def client(fake_pipe):
    with serving(Engine(fake_pipe)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def finished(client, **body):
    job = client.post("/jobs", json={"prompt": PROMPT, **body}).json()
    *_, (_, data) = events_of(client.base_url, job["id"])
    return json.loads(data)


def as_base64(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_a_job_ends_with_the_images_of_a_call(client, fake_pipe):
    done = finished(client, num_inference_steps=4, seed=5, num_images=2)
    assert done["state"] == "done"
    assert done["seeds"] == [5, 6]
    expected = fake_pipe(PROMPT, steps=4, seed=5, num_images=2).images
    for kept, image in zip(done["images"], expected, strict=True):
        answer = client.get(kept["url"])
        assert answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as got:
            assert np.array_equal(got, image)
            assert got.text["prompt"] == PROMPT


def test_events_name_the_states(client):
    job = client.post("/jobs", json={"prompt": PROMPT, "steps": 100, "preview_every": 1}).json()
    names = [name for name, _ in events_of(client.base_url, job["id"])]
    assert names[-1] == "done"
    assert set(names) <= {"waiting", "running", "step", "preview", "done"}


def test_a_preview_is_a_small_image(client):
    job = client.post("/jobs", json={"prompt": PROMPT, "steps": 150, "preview_every": 1}).json()
    previews = [
        json.loads(data)["preview"] for name, data in events_of(client.base_url, job["id"]) if name == "preview"
    ]
    head, _, data = previews[0].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as preview:
        assert preview.size == (128, 128)


def test_an_input_image_is_read_from_base64_and_from_a_data_url(client, fake_pipe):
    image = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    encoded = as_base64(image)
    jobs = [finished(client, image=f"{head}{encoded}", seed=1, steps=4) for head in ("", "data:image/png;base64,")]
    expected = fake_pipe(PROMPT, image=image, seed=1, steps=4).images[0]
    for job in jobs:
        with Image.open(io.BytesIO(client.get(job["images"][0]["url"]).content)) as got:
            assert np.array_equal(got, expected)


def test_a_cancelled_job_ends(client):
    jobs = [client.post("/jobs", json={"prompt": PROMPT, "steps": 150}).json() for _ in range(3)]
    answers = [client.delete(f"/jobs/{job['id']}") for job in reversed(jobs)]
    assert {answer.status_code for answer in answers} == {200}
    ended = [list(events_of(client.base_url, job["id"]))[-1] for job in jobs]
    assert "cancelled" in {name for name, _ in ended}
    assert {json.loads(data)["error"]["type"] for name, data in ended if name == "cancelled"} == {"Cancelled"}


def test_a_late_job_fails_with_its_deadline(client):
    job = finished(client, steps=150, timeout_s=0.001)
    assert job["images"] == []
    assert job["error"]["type"] == "DeadlineError"


def test_jobs_are_listed_the_newest_first(client):
    ids = [finished(client, steps=1)["id"] for _ in range(2)]
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]][:2] == ids[::-1]


@pytest.mark.parametrize(
    ("body", "argument"),
    [
        ({"width": 13}, "width"),
        ({"steps": 100_000}, "steps"),
        ({"timesteps": [1.0] * 500}, "timesteps"),
        ({"num_images": 500}, "num_images"),
        ({"prompt": ["a"] * 500}, "num_images"),
        ({"prompt": "a" * 20_000}, "prompt"),
        ({"width": 1 << 20}, "width"),
        ({"width": 2048, "hires": 8}, "hires"),
        ({"scheduler": {"a": 1}}, "scheduler"),
        ({"seed": "one"}, "seed"),
        ({"soft_mask": "yes"}, "soft_mask"),
        ({"hires_upscaler": "/etc/passwd"}, "hires_upscaler"),
        ({"image": "http://127.0.0.1/x.png"}, "image"),
        ({"image": "file:///etc/passwd"}, "image"),
        ({"image": "/etc/passwd"}, "image"),
        ({"image": {"path": "/etc/passwd"}}, "image"),
        ({"image": base64.b64encode(b"no image").decode()}, "image"),
        ({"depth_map": "/etc/passwd"}, "depth_map"),
        ({"output_type": "np"}, "output_type"),
        ({"callback_on_step_end": "x"}, "callback_on_step_end"),
        ({"model": "other"}, "model"),
        ({"loras": "x"}, "loras"),
        ({"loras": [{"name": "x", "path": "/"}]}, "loras"),
        ({"priority": 1 << 20}, "priority"),
        ({"timeout_s": "soon"}, "timeout_s"),
    ],
)
def test_a_wrong_field_is_named(client, body, argument):
    answer = client.post("/jobs", json={"prompt": PROMPT, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["argument"] == argument


def test_an_unknown_scheduler_is_named(client):
    answer = client.post("/jobs", json={"prompt": PROMPT, "scheduler": "none"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "SamplerError"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"{", "application/json", 400), (b"[]", "application/json", 400), (b"{}", "text/plain", 415), (b"{}", None, 415)],
)
def test_a_body_must_be_a_json_object(client, content, kind, status):
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post("/jobs", content=content, headers=headers).status_code == status


def test_unknown_names_are_not_there(client):
    for path in ("/jobs/x", "/jobs/x/events", "/files/x.png", "/files/..%2f..%2fetc%2fpasswd", "/nothing"):
        assert client.get(path).status_code == 404
    assert client.put("/jobs").status_code == 405


def test_ids_of_an_earlier_server_are_gone(client):
    other = "00000000" + "A" * 24
    assert client.get(f"/jobs/{other}").status_code == 410


def test_finished_files_survive_a_restart_and_unfinished_ones_do_not(fake_pipe, tmp_path):
    settings = ServiceSettings(files_folder=tmp_path)
    with serving(Engine(fake_pipe), settings) as address, httpx.Client(base_url=address, timeout=60) as client:
        job = finished(client, steps=1)
    name = job["images"][0]["name"]
    unfinished = next(tmp_path.rglob(name)).with_name("x.png.part")
    unfinished.touch()
    with serving(Engine(fake_pipe), settings) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get(f"/files/{name}").status_code == 200
        assert client.get(f"/jobs/{job['id']}").status_code == 410
    assert not unfinished.exists()


def test_files_expire(fake_pipe, tmp_path):
    settings = ServiceSettings(files_folder=tmp_path, files_expire_s=0.0)
    with serving(Engine(fake_pipe), settings) as address, httpx.Client(base_url=address, timeout=60) as client:
        job = finished(client, steps=1)
        assert client.get(job["images"][0]["url"]).status_code == 404


def test_every_field_of_a_call_is_taken_or_refused():
    from calotype.request.request import Request
    from calotype.serve.web.service.arguments import FIELDS, REFUSED

    assert {*FIELDS, *REFUSED} == set(Request.__dataclass_fields__)
    assert not FIELDS.keys() & REFUSED.keys()
