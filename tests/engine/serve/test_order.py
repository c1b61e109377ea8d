"""Which job runs when: priorities, short jobs, limits of the queue, deadlines."""

import threading
import time

import pytest
from PIL import Image

from calotype.backends.fake import FakeRunner
from calotype.errors import DeadlineError, QueueFullError
from calotype.serve import Engine, EngineSettings, JobRequest
from calotype.serve.costs import PRIORITY_S, Costs, rank_of


@pytest.fixture
def gate(monkeypatch):
    """Steps wait until the event is set."""
    gate, original = threading.Event(), FakeRunner.__call__

    def waiting(self, inputs):
        if "timestep" in inputs:
            assert gate.wait(60)
            time.sleep(0.002)  # a thousand steps are a long job
        return original(self, inputs)

    monkeypatch.setattr(FakeRunner, "__call__", waiting)
    return gate


@pytest.fixture
def one_at_a_time(fake_pipe, gate):
    engine = Engine(fake_pipe, EngineSettings(max_slots=1, max_waiting=20, max_waiting_bytes=1 << 20))
    yield engine
    gate.set()
    engine.close()


def job_of(engine, steps, **request):
    return engine.submit(JobRequest(prompt="a red ring", arguments={"steps": steps, "seed": 1}, **request))


def order_of(jobs, gate):
    """Wait for all jobs, and return their numbers in the order in which they ended."""
    ended, lock = [], threading.Lock()

    def wait(number):
        jobs[number].result(60)
        with lock:
            ended.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    return ended


def test_a_short_job_overtakes_a_long_one(one_at_a_time, gate):
    jobs = [job_of(one_at_a_time, 1000), job_of(one_at_a_time, 2)]
    assert order_of(jobs, gate) == [1, 0]


def test_a_higher_priority_runs_first(one_at_a_time, gate):
    jobs = [job_of(one_at_a_time, 300), job_of(one_at_a_time, 200), job_of(one_at_a_time, 400, priority=1)]
    assert order_of(jobs, gate)[0] == 2


def test_no_job_waits_forever():
    long = rank_of(arrival=0.0, work_s=30.0, priority=0)
    assert rank_of(arrival=1.0, work_s=1.0, priority=0) < long
    assert rank_of(arrival=31.0, work_s=0.1, priority=0) > long
    assert rank_of(arrival=31.0 + PRIORITY_S, work_s=0.1, priority=1) > long


@pytest.mark.parametrize(("together_s", "pays"), [(0.5, True), (2.0, False)])
def test_the_faster_way_is_measured(together_s, pays):
    costs, ways = Costs(), []
    for _ in range(100):
        ways.append(costs.pays_together("kind"))
        costs.learn("kind", 2 if ways[-1] else 1, 2 * together_s if ways[-1] else 1.0)
    assert {True, False} == set(ways)  # both were measured
    assert ways[50:].count(pays) >= 48


def test_waiting_jobs_know_their_places(one_at_a_time):
    jobs = [job_of(one_at_a_time, 1000) for _ in range(5)]
    for job in jobs[1:]:
        while job.status.place == 0 and job.status.state == "waiting":
            time.sleep(0.001)
    waiting = [job for job in jobs if job.status.state == "waiting"]
    assert [job.status.place for job in waiting] == sorted(job.status.place for job in waiting)
    assert all(job.status.eta_s is not None for job in waiting)
    for job in jobs:
        job.cancel()


def test_the_queue_has_a_limit_in_bytes(one_at_a_time):
    image = Image.new("RGB", (640, 640))
    long = job_of(one_at_a_time, 1000)
    small = {"image": image, "steps": 1000, "seed": 1, "width": 128, "height": 128}
    with pytest.raises(QueueFullError):
        for _ in range(9):
            one_at_a_time.submit(JobRequest(prompt="a red ring", arguments=small))
    long.cancel()


def test_a_job_that_waits_ends_at_its_deadline(one_at_a_time, gate):
    long = [job_of(one_at_a_time, 1000, priority=2) for _ in range(8)]
    late = job_of(one_at_a_time, 1000, timeout_s=0.02)
    gate.set()
    with pytest.raises(DeadlineError):
        late.result(60)
    assert late.status.state == "failed"
    for job in long:
        job.cancel()


def test_a_closing_engine_ends_its_jobs(fake_pipe):
    engine = Engine(fake_pipe)
    ends = [job_of(engine, 3), job_of(engine, 1000)]
    engine.close(drain_s=30)
    assert [job.status.state for job in ends] == ["done", "done"]
    with pytest.raises(QueueFullError):
        job_of(engine, 1)
    engine = Engine(fake_pipe)
    job = job_of(engine, 1000)
    engine.close()
    assert job.status.state == "cancelled"
