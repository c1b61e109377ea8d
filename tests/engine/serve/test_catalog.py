"""Models by name, opened on demand within a budget; LoRAs by name, for each job its own."""

import shutil

import numpy as np
import pytest

import calotype
from calotype.errors import InputError, SourceError
from calotype.serve import Engine, EngineSettings, JobRequest, ModelCatalog

SMALL = {"steps": 1, "seed": 3, "height": 64, "width": 64, "output_type": "np"}


class Loads:
    """Loaders of the demonstration model on the fake backend. `names` has the loads."""

    def __init__(self):
        self.names = []

    def __call__(self, name):
        def load():
            self.names.append(name)
            return calotype.load("demo", backend="fake")

        return load


def test_models_are_opened_on_demand_and_closed_within_the_budget():
    loads = Loads()
    engine = Engine(ModelCatalog({name: loads(name) for name in "abc"}, memory_bytes=1))
    assert loads.names == []
    for name in ("a", "b", "a"):
        assert engine.submit(JobRequest(prompt="a ring", arguments=SMALL, model=name)).result(60)
    assert loads.names == ["a", "b", "a"]
    assert engine.submit(JobRequest(prompt="a ring", arguments=SMALL)).result(60)
    assert loads.names == ["a", "b", "a"]
    engine.close()


def test_without_a_budget_models_stay_open():
    loads = Loads()
    engine = Engine({name: loads(name) for name in "ab"})
    jobs = [engine.submit(JobRequest(prompt="a ring", arguments=SMALL, model=name)) for name in "abab"]
    assert all(job.result(60) for job in jobs)
    assert sorted(loads.names) == ["a", "b"]
    engine.close()


def test_a_model_that_cannot_be_opened_fails_its_jobs_only():
    def broken():
        raise SourceError("there is no such file", path="x")

    engine = Engine({"good": calotype.load("demo", backend="fake"), "broken": broken})
    job = engine.submit(JobRequest(prompt="a ring", arguments=SMALL, model="broken"))
    with pytest.raises(SourceError):
        job.result(60)
    assert engine.submit(JobRequest(prompt="a ring", arguments=SMALL, model="good")).result(60)
    late = engine.submit(JobRequest(prompt="a ring", arguments={"width": 13}, model="broken"))
    with pytest.raises(SourceError):
        late.result(60)
    engine.close()


@pytest.fixture(scope="module")
def lora_folder(demo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    shutil.copy(demo_folder / "outline.safetensors", folder / "outline.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(lora_folder):
    """Return the image of each weight of the LoRA, by calls of a pipeline."""
    pipe, images = calotype.load("demo", backend="eager"), {}
    for weight in (0.0, 0.5, 1.0):
        pipe.set_lora((lora_folder / "outline.safetensors", weight) if weight else None)
        images[weight] = pipe("a red ring", **SMALL).images
    return images


def test_each_job_has_its_own_loras(lora_folder, expected):
    engine = Engine(calotype.load("demo", backend="eager", lora_folder=lora_folder), EngineSettings(max_slots=4))
    requests = [
        (0.5, JobRequest(prompt="a red ring", loras=(("outline", 0.5),), arguments=SMALL)),
        (0.0, JobRequest(prompt="a red ring", arguments=SMALL)),
        (1.0, JobRequest(prompt="a red ring <lora:outline>", arguments=SMALL)),
        (0.5, JobRequest(prompt="a red ring <lora:outline:0.5>", arguments=SMALL)),
        (0.0, JobRequest(prompt="a red ring", loras=(), arguments=SMALL)),
    ]
    jobs = [(weight, engine.submit(request)) for weight, request in requests]
    for weight, job in jobs:
        np.testing.assert_allclose(job.result(120).images, expected[weight], atol=1e-4)
    with pytest.raises(InputError):
        engine.submit(JobRequest(prompt="a red ring", loras=(("other", 1.0),), arguments=SMALL))
    with pytest.raises(InputError):
        engine.submit(JobRequest(prompt="a red ring <lora:../outline:1>", arguments=SMALL))
    engine.close()


def test_jobs_of_other_weights_get_their_turn(lora_folder):
    engine = Engine(calotype.load("demo", backend="eager", lora_folder=lora_folder), EngineSettings(max_slots=2))

    def plain(seed):
        return engine.submit(JobRequest(prompt="a red ring", arguments={**SMALL, "seed": seed, "steps": 3}))

    stream = [plain(seed) for seed in range(4)]
    other = engine.submit(JobRequest(prompt="a red ring <lora:outline>", arguments=SMALL))
    while not other.status.is_final and len(stream) < 400:
        stream[-1].result(60)
        stream += [plain(len(stream)) for _ in range(4)]
    assert other.result(60)
    assert len(stream) < 400
    for job in stream:
        job.cancel()
    engine.close()
