"""Images of a mixed batch are those of calls alone; an error of one job stays its own."""

import threading

import numpy as np
import pytest

import calotype
from calotype.backends.fake import FakeRunner
from calotype.errors import CalotypeError, Cancelled, NotFiniteError
from calotype.serve import Engine, EngineSettings, JobRequest
from calotype.serve.observer import Observer
from tests.helpers.parity import psnr

MIXED = (
    ("a small green ring above a white cross on an orange background", {"steps": 6, "scheduler": "euler"}),
    ("a red circle", {"steps": 4, "scheduler": "dpm++2m", "guidance_scale": 1.0}),
    ("a yellow star", {"steps": 9, "scheduler": "ddim", "guidance_scale": 5.0, "negative_prompt": "red"}),
    ("a blue square and a white cross", {"steps": 5, "scheduler": "euler_a", "num_images": 2}),
    ("a purple heart", {"steps": 8, "scheduler": "unipc", "guidance_rescale": 0.5}),
)


class Batches(Observer):
    def __init__(self):
        self.sizes = []
        self.reasons = []

    def stepped(self, model, images, seconds):
        self.sizes.append(images)

    def split(self, model, reason):
        self.reasons.append(reason)


def submitted(engine, requests):
    """Return jobs that were submitted while the engine was busy, so that they meet."""
    return [
        engine.submit(JobRequest(prompt=prompt, arguments={"seed": seed, "output_type": "np", **arguments}))
        for seed, (prompt, arguments) in enumerate(requests)
    ]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "eager", "fake"])
def test_an_image_of_a_mixed_batch_is_the_image_alone(backend):
    pipe = calotype.load("demo", backend=backend)
    batches = Batches()
    engine = Engine(pipe, EngineSettings(max_slots=4), batches)
    image = pipe("a red ring", seed=1, steps=2).images[0]
    requests = (*MIXED, ("a red ring", {"image": image, "strength": 0.6, "steps": 8}))
    jobs = submitted(engine, requests)
    for seed, ((prompt, arguments), job) in enumerate(zip(requests, jobs, strict=True)):
        expected = pipe(prompt, seed=seed, output_type="np", **arguments).images
        for one, alone in zip(job.result(300).images, expected, strict=True):
            assert psnr(one, alone) >= 60
    engine.close()
    assert max(batches.sizes) > 1
    assert batches.reasons == []


def test_a_job_alone_has_the_bytes_of_a_call():
    pipe = calotype.load("demo", backend="openvino")
    engine = Engine(pipe)
    job = engine.submit(JobRequest(prompt="a red ring", arguments={"seed": 3, "steps": 3}))
    assert np.array_equal(job.result(60).images[0], pipe("a red ring", seed=3, steps=3).images[0])
    engine.close()


def test_numbers_that_are_not_finite_end_their_job_only(monkeypatch):
    pipe = calotype.load("demo", backend="fake")
    bad = "a black hole"
    call = pipe._generator.start(bad, {}, threading.Event())
    states = pipe._generator._prompts(call.request)["encoder_hidden_states"][-1]
    original = FakeRunner.__call__

    def poisoned(self, inputs):
        outputs = original(self, inputs)
        rows = inputs.get("encoder_hidden_states", ())
        for row, each in enumerate(rows):
            if np.array_equal(each, states):
                outputs["out_sample"][row] = np.nan
        return outputs

    monkeypatch.setattr(FakeRunner, "__call__", poisoned)
    batches = Batches()
    engine = Engine(pipe, EngineSettings(max_slots=8), batches)
    good = [("a red ring", {"steps": 30}), ("a white cross", {"steps": 30})]
    jobs = submitted(engine, [good[0], (bad, {"steps": 30}), good[1]])
    with pytest.raises(NotFiniteError):
        jobs[1].result(60)
    assert len(jobs[0].result(60).images)
    assert len(jobs[2].result(60).images)
    assert engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1})).result(60)
    engine.close()


def test_a_backend_that_fails_ends_its_job_only(monkeypatch):
    pipe = calotype.load("demo", backend="fake")
    pipe("a red ring", steps=1)  # a backend that never worked is replaced
    original = FakeRunner.__call__

    def failing(self, inputs):
        if len(inputs.get("out", ())) or ("sample" in inputs and inputs["sample"].shape[-1] == 8):
            raise RuntimeError("the device is on fire")
        return original(self, inputs)

    monkeypatch.setattr(FakeRunner, "__call__", failing)
    engine = Engine(pipe, EngineSettings(max_slots=8))
    sizes = pipe.plan.profile
    small = sizes.width.min if sizes.width.min // 8 != 8 else 64
    jobs = submitted(
        engine, [("a red ring", {"steps": 20}), ("a white cross", {"steps": 20, "width": 64, "height": 64})]
    )
    del small
    with pytest.raises(CalotypeError, match="fire"):
        jobs[1].result(60)
    assert len(jobs[0].result(60).images)
    engine.close()


def test_a_cancelled_job_leaves_at_the_next_step():
    pipe = calotype.load("demo", backend="fake")
    engine = Engine(pipe, EngineSettings(max_slots=2))
    long = [engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000, "seed": i})) for i in range(2)]
    waiting = engine.submit(JobRequest(prompt="a red ring", arguments={"steps": 1000, "seed": 2}))
    for job in long:
        job.cancel()
    for job in long:
        with pytest.raises(Cancelled):
            job.result(60)
    waiting.cancel()
    with pytest.raises(Cancelled):
        waiting.result(60)
    engine.close()
    assert engine.stats.running == engine.stats.waiting == 0
