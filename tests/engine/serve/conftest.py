"""Fixtures of the server's tests: a model that costs nothing, a client, and a job of somebody else."""

import threading

import httpx
import pytest

import calotype
from calotype.serve import JobRequest


@pytest.fixture(scope="module")
def fake_pipe():
    return calotype.load("demo", backend="fake")


@pytest.fixture(scope="module")
def client():
    with httpx.Client(timeout=60) as client:
        yield client


@pytest.fixture
def busy(engine):
    """A job of somebody else, which runs until the event is set."""
    release = threading.Event()

    def hold(pipe, step, timestep, tensors):
        release.wait()
        return tensors

    job = engine.submit(JobRequest(prompt="", arguments={"steps": 2, "callback_on_step_end": hold}, owner="other"))
    yield release
    release.set()
    assert job.result(60).images  # nobody else ended it
