"""The server on a local cluster of Ray: workers come and go with the load, and a worker that dies loses no job."""

import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.errors import Cancelled, DeadlineError, InputError, QueueFullError
from calotype.export.quality.metrics import psnr
from calotype.serve import JobRequest
from calotype.serve.command.config import ServeConfig
from tests.helpers.server.ray_cluster import free_port, kill, local_cluster, processes_of, wait_until

SIZE = {"width": 64, "height": 64}
SHORT, LONG = {"steps": 2, **SIZE}, {"steps": 100, **SIZE}  # a long one takes about half a second
APP = "jobs"
WORKERS = f"ray::ServeReplica:{APP}:Worker"
MAX_WAITING = 12
# Ray leaves sockets open, and uses what is deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def config(saved_plan):
    return ServeConfig(
        models={"plan": str(saved_plan)},
        max_waiting=MAX_WAITING,
        max_workers=2,
        jobs_per_worker=1,
        max_jobs_per_worker=3,
        cpus_per_worker=0.25,  # of two cores: Ray Data needs one to read the lines
        upscale_delay_s=0.1,
        downscale_delay_s=8.0,
        load_interval_s=0.25,
    )


@pytest.fixture(scope="module")
def client(config):
    """A client of the application on a cluster of two cores. Its start has begun with no worker."""
    from ray import serve

    from calotype.serve.ray import application

    port = free_port()
    with local_cluster(), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(config), name=APP, route_prefix="/")
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def engine(client, config):
    """The engine of an ingress, in this process, with the workers of the application."""
    from ray import serve

    from calotype.serve.ray.remote_engine import RemoteEngine

    engine = RemoteEngine(serve.get_deployment_handle("Worker", APP), config)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plan(saved_plan):
    return calotype.load(saved_plan)


def request(**arguments):
    return JobRequest(prompt="a red ring", arguments=arguments)


def assert_same(image, seed, plan):
    expected = plan("a red ring", **LONG, seed=int(seed)).images[0]
    assert psnr(np.asarray(image) / 255, np.asarray(expected) / 255) >= 60


def statuses_of(client, job_id):
    """Yield the data of each event of a job."""
    with client.stream("GET", f"/jobs/{job_id}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_more_load_starts_a_second_worker(engine):
    assert not processes_of(WORKERS)
    jobs = []

    def loaded():
        waiting = [job for job in jobs if not job.status.is_final]
        jobs.extend(engine.submit(request(**LONG)) for _ in range(6 - len(waiting)))
        return len(processes_of(WORKERS)) == 2

    wait_until(loaded)
    for job in jobs:
        job.cancel()


def test_workers_that_die_lose_no_job(client, engine, plan):
    streamed = client.post("/jobs", json={"prompt": "a red ring", **LONG}).json()
    stream = []
    reader = threading.Thread(target=lambda: stream.extend(statuses_of(client, streamed["id"])))
    reader.start()
    jobs = [engine.submit(request(**LONG)) for _ in range(6)]
    wait_until(lambda: any(5 < job.status.step < LONG["steps"] for job in jobs))
    seen = [[job.status.step] for job in jobs]
    kill(processes_of(WORKERS))
    while not all(job.status.is_final for job in jobs):
        for steps, job in zip(seen, jobs, strict=True):
            steps.append(job.status.step)
        time.sleep(0.01)
    reader.join(60)
    for steps in [*seen, [status["step"] for status in stream]]:
        assert steps == sorted(steps)
    for job in jobs:
        result = job.result()
        assert_same(result.images[0], result.seeds[0], plan)
    assert len({job.result().seeds for job in jobs}) == 6
    assert stream[-1]["state"] == "done"
    with Image.open(io.BytesIO(client.get(stream[-1]["images"][0]["url"]).content)) as image:
        assert_same(image, stream[-1]["seeds"][0], plan)


def test_too_many_jobs_get_429(client):
    answers = [client.post("/jobs", json={"prompt": "a red ring", **LONG}) for _ in range(MAX_WAITING + 8)]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    jobs = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(jobs) >= MAX_WAITING
    for job in jobs:
        client.delete(f"/jobs/{job}")
    ended = [list(statuses_of(client, job))[-1]["state"] for job in jobs]
    assert set(ended) <= {"done", "cancelled"}
    assert "cancelled" in ended


def test_invalid_arguments_are_refused_before_a_worker_sees_them(client):
    answer = client.post("/jobs", json={"prompt": "a red ring", "width": 13})
    assert (answer.status_code, answer.json()["error"]["argument"]) == (400, "width")


def test_a_client_that_leaves_ends_its_job(client):
    body = {"prompt": "a red ring", "num_inference_steps": 100}
    before = len(client.get("/jobs").json()["jobs"])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=0.3)
    wait_until(lambda: all(job["state"] in ("done", "cancelled") for job in client.get("/jobs").json()["jobs"]))
    assert client.get("/jobs").json()["jobs"][0]["state"] == "cancelled"
    assert len(client.get("/jobs").json()["jobs"]) == before + 1


def test_errors_reach_the_client(engine):
    with pytest.raises(InputError) as caught:
        engine.submit(request(width=13))
    assert caught.value.argument == "width"
    with pytest.raises(InputError):
        engine.submit(JobRequest(prompt="a red ring", model="other"))
    with pytest.raises(DeadlineError):
        engine.submit(JobRequest(prompt="a red ring", arguments=LONG, timeout_s=0.2)).result(60)


def test_cancelled_jobs_free_their_worker(engine):
    jobs = [engine.submit(request(**LONG)) for _ in range(MAX_WAITING)]
    with pytest.raises(QueueFullError) as caught:
        for _ in range(4):  # two workers may have started two
            engine.submit(request(**LONG))
    assert caught.value.limit == MAX_WAITING
    for job in engine.jobs():
        job.cancel()
    for job in jobs:
        with pytest.raises(Cancelled):
            job.result(60)
    assert engine.submit(request(**SHORT)).result(60)


def test_each_prompt_of_a_file_has_one_image(client, saved_plan, plan, tmp_path):
    from calotype.serve.ray import map

    lines = [{"prompt": f"ring {n}", **SHORT} for n in range(5)]
    lines.append({"prompt": "a", "width": 13})
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    first = map(tmp_path / "prompts.jsonl", tmp_path / "out", model=saved_plan, jobs_per_worker=3, cpus=0.25)
    files = sorted((tmp_path / "out").iterdir())
    assert (first.written, first.kept, len(first.failed)) == (5, 0, 1)
    assert "line 6" in first.failed[0][0]
    content = [path.read_bytes() for path in files]
    files[1].write_bytes(content[1][:100])
    files[3].unlink()
    second = map(tmp_path / "prompts.jsonl", tmp_path / "out", model=saved_plan, jobs_per_worker=3, cpus=0.25)
    assert (second.written, second.kept, len(second.failed)) == (2, 3, 1)
    assert sorted((tmp_path / "out").iterdir()) == files
    for n, path in enumerate(files):
        with Image.open(path) as image:
            expected = plan(f"ring {n}", **SHORT, seed=int(image.info["seed"])).images[0]
            assert psnr(np.asarray(image) / 255, np.asarray(expected) / 255) >= 60


def test_a_line_with_several_images_is_refused(tmp_path):
    from calotype.serve.ray import map

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "num_images": 2}')
    with pytest.raises(InputError) as caught:
        map(tmp_path / "prompts.jsonl", tmp_path / "out")
    assert caught.value.argument == "prompts"


def test_without_work_there_is_no_worker(client):
    wait_until(lambda: not processes_of(WORKERS))
    assert client.get("/health/ready").status_code == 200
