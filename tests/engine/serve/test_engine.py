"""The engine loop takes jobs from many threads: their images, cancellation, limits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import calotype
from calotype.errors import Cancelled, DeadlineError, InputError, QueueFullError
from calotype.serve import Engine, EngineSettings, JobRequest


@pytest.fixture
def engine(fake_pipe):
    engine = Engine(fake_pipe)
    yield engine
    engine.close()


def test_a_job_has_the_image_of_a_call(engine, fake_pipe):
    jobs = [engine.submit(JobRequest(prompt="a red ring", arguments={"seed": seed, "steps": 4})) for seed in range(3)]
    for seed, job in enumerate(jobs):
        expected = fake_pipe("a red ring", seed=seed, steps=4).images[0]
        assert np.array_equal(job.result(30).images[0], expected)
        assert job.status.step == job.status.total == 4


def test_updates_end_with_the_result(engine):
    job = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 6}, preview_every=2))

    async def watch():
        return [status async for status in job.updates()]

    with ThreadPoolExecutor(1) as thread:  # a loop may run in this one: that of a browser's driver
        seen = thread.submit(asyncio.run, watch()).result()
    assert seen[-1].state == "done"
    assert seen[-1].result is not None
    assert [status.version for status in seen] == sorted({status.version for status in seen})
    assert job.status.preview_step == 4


def test_invalid_arguments_raise_at_once(engine):
    with pytest.raises(InputError) as caught:
        engine.submit(JobRequest(prompt="a red ring", arguments={"width": 13}))
    assert caught.value.argument == "width"
    with pytest.raises(InputError):
        engine.submit(JobRequest(prompt="a red ring", model="other"))


def test_a_cancelled_job_ends(engine):
    job = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000}))
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(30)
    assert engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1})).result(30)


def test_a_job_ends_at_its_deadline(engine):
    job = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000}, timeout_s=0.01))
    with pytest.raises(DeadlineError):
        job.result(30)


def test_the_queue_has_a_limit(fake_pipe):
    engine = Engine(fake_pipe, EngineSettings(max_waiting=0))
    with pytest.raises(QueueFullError) as caught:
        engine.submit(JobRequest(prompt="a red ring"))
    assert caught.value.limit == 0
    assert caught.value.retry_after_s is not None
    engine.close()


def test_an_ended_job_holds_neither_its_inputs_nor_the_frames_of_its_error(engine):
    done = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 2}, preview_every=1))
    assert done.result(30)
    late = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000}, timeout_s=0.01))
    for _ in range(2):
        with pytest.raises(DeadlineError):
            late.result(30)
    assert late.status.error.__traceback__ is None
    assert done.request.arguments == late.request.arguments == {}
    assert done.status.preview == ()


def test_old_results_are_dropped_by_their_size(fake_pipe):
    size = 3 * 64 * 64
    engine = Engine(fake_pipe, EngineSettings(kept_bytes=2 * size))
    small = {"steps": 1, "width": 64, "height": 64}
    jobs = [engine.submit(JobRequest(prompt="a red ring", arguments=small)) for _ in range(5)]
    for job in jobs:
        job.result(30)
    engine.close()
    assert [engine.job(job.id) is job for job in jobs] == [False, False, False, True, True]


def test_an_error_of_the_loop_ends_its_jobs(fake_pipe, monkeypatch):
    engine = Engine(fake_pipe)
    job = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000}))

    def broken():
        raise KeyError("broken")

    monkeypatch.setattr(engine._batcher, "_next_batch", broken)
    with pytest.raises(calotype.CalotypeError, match="internal"):
        job.result(30)
    monkeypatch.undo()
    assert engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1})).result(30)
    engine.close()
