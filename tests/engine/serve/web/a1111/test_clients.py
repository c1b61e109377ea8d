"""Progress, interrupts and options: each client has its own, and none changes another's."""

import threading
import time

import httpx
import pytest

import calotype
from calotype.serve import Engine, JobRequest
from calotype.serve.web.service import ServiceSettings
from calotype.serve.web.service.keys import new_key
from tests.helpers.server import serving
from tests.helpers.server.web_ui import decoded, generated

BASE = {"prompt": "a ring", "steps": 4, "seed": 5, "width": 64, "height": 64}


class Posting:
    """A request in a thread."""

    def __init__(self, client, **body):
        self._thread = threading.Thread(target=self._post, args=(client, body))
        self._thread.start()

    def _post(self, client, body):
        self._answer = client.post("/sdapi/v1/txt2img", json={**BASE, **body})

    @property
    def answer(self):
        self._thread.join()
        return self._answer


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def jobs_of(client):
    return client.get("/sdapi/v1/progress").json()["state"]["job_count"]


def test_nothing_runs(client):
    progress = client.get("/sdapi/v1/progress?skip_current_image=false").json()
    assert (progress["progress"], progress["state"]["job_count"], progress["current_image"]) == (0, 0, None)


def test_an_interrupt_without_a_body_ends_the_client_s_jobs_only(client, busy):
    posting = Posting(client)
    wait_for(lambda: jobs_of(client))
    assert client.post("/sdapi/v1/interrupt").status_code == 200
    busy.set()
    assert posting.answer.status_code == 200
    assert posting.answer.json()["images"] == []
    assert jobs_of(client) == 0


def test_an_interrupt_by_its_id_ends_one_task(client, busy):
    first, second = Posting(client, force_task_id="task(a)"), Posting(client, force_task_id="task(b)")
    wait_for(lambda: jobs_of(client) == 2)
    assert client.post("/sdapi/v1/interrupt", json={"force_task_id": "task(c)"}).status_code == 404
    assert client.post("/sdapi/v1/interrupt", json={"force_task_id": "task(b)"}).status_code == 200
    busy.set()
    assert len(first.answer.json()["images"]) == 1
    assert second.answer.json()["images"] == []


def test_skip_leaves_waiting_jobs_alone(client, busy):
    posting = Posting(client)
    wait_for(lambda: jobs_of(client))
    client.post("/sdapi/v1/skip")
    busy.set()
    assert len(posting.answer.json()["images"]) == 1


@pytest.fixture
def keys(tmp_path):
    """The keys of two clients of one address, and the file of their hashes."""
    (alice, first), (bob, second) = new_key("alice"), new_key("bob")
    file = tmp_path / "keys.toml"
    file.write_text(first + second)
    return file, httpx.BasicAuth("calotype", alice), {"Authorization": f"Bearer {bob}"}


def test_clients_of_one_address_are_told_apart_by_their_keys(keys):
    file, alice, bob = keys
    engine = Engine({name: calotype.load("demo", backend="fake") for name in ("demo", "other")})
    with (
        serving(engine, ServiceSettings(key_file=file)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        assert client.get("/sdapi/v1/options").status_code == 401
        assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}, auth=alice).status_code == 200
        models = [
            client.get("/sdapi/v1/options", **who).json()["sd_model_checkpoint"]
            for who in ({"auth": alice}, {"headers": bob})
        ]
        assert models == ["other", "demo"]
        answer = client.post("/sdapi/v1/txt2img", json=BASE, auth=alice).json()
        assert '"sd_model_name": "other"' in answer["info"]


@pytest.mark.parametrize("everybody", [False, True])
def test_only_a_flag_lets_an_interrupt_end_everybody_s_jobs(everybody):
    release = threading.Event()

    def hold(pipe, step, timestep, tensors):
        release.wait()
        return tensors

    engine = Engine(calotype.load("demo", backend="fake"))
    with serving(engine, ServiceSettings(interrupt_everybody=everybody)) as address:
        arguments = {"steps": 2, "callback_on_step_end": hold}
        job = engine.submit(JobRequest(prompt="", arguments=arguments, owner="other"))
        httpx.post(f"{address}/sdapi/v1/interrupt", timeout=60)
        release.set()
        wait_for(lambda: job.status.is_final)
    assert job.status.state == ("cancelled" if everybody else "done")


def test_progress_shows_a_preview_and_an_interrupted_job_answers_with_it(client):
    posting = Posting(client, steps=150, batch_size=16, width=256, height=256)
    images = []

    def seen():
        progress = client.get("/sdapi/v1/progress").json()
        images.extend([progress["current_image"]] if progress["current_image"] else [])
        return images or not progress["state"]["job_count"]

    wait_for(lambda: jobs_of(client))
    wait_for(seen)
    client.post("/sdapi/v1/interrupt")
    assert decoded(images[0]).size == (256, 256)
    assert posting.answer.json()["images"]


def test_options_can_be_sent_back_as_they_were_read(client):
    options = client.get("/sdapi/v1/options").json()
    assert client.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": "edges"}).status_code == 200
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "edges"
    assert generated(client, "txt2img", **BASE)[1]["sd_model_name"] == "edges"
    assert client.post("/sdapi/v1/options", json={**options, "CLIP_stop_at_last_layers": 2}).status_code == 200
    assert generated(client, "txt2img", **BASE)[1]["clip_skip"] == 2
    assert client.post("/sdapi/v1/options", json=options).status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        {"outdir_samples": "/etc"},
        {"samples_format": "jpg"},
        {"sd_model_checkpoint": "other"},
        {"CLIP_stop_at_last_layers": 0},
        {"CLIP_stop_at_last_layers": "last"},
    ],
)
def test_other_options_are_refused(client, options):
    answer = client.post("/sdapi/v1/options", json=options)
    assert answer.status_code == 400
    assert answer.json()["detail"]
