"""`calotype.load(..., backend="cuda")`: pictures as one graph, the loop for the others, and the report says which."""

import re
from dataclasses import replace

import diffusers
import numpy as np
import pytest

import calotype
from calotype.backends.torch import cuda
from calotype.cuda import fused_modules as fused
from calotype.cuda.graphs import CudaGraphCache
from calotype.errors import Cancelled
from calotype.graph import runner as painter

SMALL = {"steps": 2, "width": 64, "height": 64}
RED = "a red star"


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def load(device, gpu, recorder, monkeypatch):
    """In the interpreter the networks are left as they are: with kernels in them a picture would take minutes."""
    if device.type == "cpu":
        monkeypatch.setattr(fused, "fuse", lambda network: None)
        monkeypatch.setattr(cuda, "unavailable", lambda: None)
        monkeypatch.setattr(cuda, "Gpu", lambda: gpu)
        monkeypatch.setattr(painter, "Gpu", lambda: gpu)
    monkeypatch.setattr(cuda, "CudaGraphCapturer", lambda: recorder)
    monkeypatch.setattr(painter, "CudaGraphCapturer", lambda: recorder)
    return lambda model="demo": calotype.load(model, backend="cuda")


def near(got, wanted, device) -> bool:
    pairs = [(np.asarray(a).astype(int), np.asarray(b)) for a, b in zip(got.images, wanted.images, strict=True)]
    return max(int(np.abs(a - b).max()) for a, b in pairs) <= (1 if device.type == "cpu" else 8)


def test_pictures_are_one_graph_and_the_loops(load, eager, device, recorder):
    pipe = load()
    for seed, prompt in enumerate([RED, "a green cross", ["a blue ring on a white background", "a green cross"]]):
        said = {"prompt": prompt, "seed": seed, "guidance_scale": 4.0, **SMALL}
        got = pipe(**said)
        assert near(got, eager(**said), device)
        assert "generated as one graph" in got.report.notes
        assert set(got.report.seconds) == {"graph"}
    assert recorder.made == 2  # of one picture, and of two
    assert got.images[0].info["backend"] == "cuda"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"scheduler": diffusers.DDIMScheduler(clip_sample=True)}, "sampler matrix"),
        ({"guidance_interval": (0.0, 0.5)}, "guidance_interval"),
        ({"output_type": "np"}, "output_type is np"),
    ],
    ids=["no matrix", "guidance now and then", "floats"],
)
def test_what_cannot_be_one_graph_goes_the_loops_way_and_is_told(said, told, load, eager, device):
    pipe, said = load(), {"prompt": RED, "seed": 3, **SMALL, **said}
    got, wanted = pipe(**said), eager(**said)
    (note,) = [n for n in got.report.notes if n.startswith("generated step by step: ")]
    assert re.search(told, note)
    assert "steps" in got.report.seconds
    if said.get("output_type") == "np":
        assert np.abs(got.images - wanted.images).max() <= (1e-3 if device.type == "cpu" else 0.03)
    else:
        assert near(got, wanted, device)


def test_a_stream_goes_step_by_step(load, eager, device):
    *_, last = load().stream(RED, seed=1, **SMALL)
    assert last.step == 2
    assert near(last.result, eager(RED, seed=1, **SMALL), device)
    assert not [n for n in last.result.report.notes if n.startswith("generated")]


def test_a_picture_that_has_no_room_as_one_graph_is_painted_step_by_step(load, eager, device, monkeypatch):
    def full(self, inputs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB")

    pipe = load()
    real = CudaGraphCache._replayed
    monkeypatch.setattr(
        CudaGraphCache, "_replayed", lambda self, given: (full if "has_text" in given else real)(self, given)
    )
    got = pipe(RED, seed=2, **SMALL)
    assert near(got, eager(RED, seed=2, **SMALL), device)
    (note,) = [n for n in got.report.notes if n.startswith("generated step by step: ")]
    assert "the GPU has no room for a run of this size" in note
    monkeypatch.setattr(CudaGraphCache, "_replayed", real)
    assert "generated as one graph" in pipe(RED, seed=2, **SMALL).report.notes


def test_numbers_that_are_not_finite_are_told_by_the_loop(load):
    pipe = load()
    pipe.plan = replace(pipe.plan, scaling_factor=1e-38)
    broken = calotype.Pipeline(pipe.plan, pipe._choice)
    with pytest.raises(calotype.CalotypeError, match="not finite"):
        broken(RED, **SMALL)


def test_what_was_cancelled_is_not_begun(load):
    pipe = load()
    work, stop = pipe._start(RED, SMALL)
    pipe.cancel()
    with pytest.raises(Cancelled):
        pipe._run_graph(work, stop)
