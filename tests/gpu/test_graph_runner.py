"""`calotype.load(..., backend="cuda")`: images as one graph, the loop for other jobs, and the report says which."""

import re
from dataclasses import replace

import diffusers
import numpy as np
import pytest

import calotype
from calotype.backends.torch import cuda
from calotype.cuda.fused import fuse as fused
from calotype.cuda.graphs import CudaGraphCache
from calotype.errors import Cancelled
from calotype.export.quality.metrics import psnr
from calotype.graph import runner as graph_runner
from tests.helpers.backends import change_backend

SMALL = {"steps": 2, "width": 32, "height": 32}
RED = "a red star"


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def pipe(device, gpu, recorder, monkeypatch):
    """In the interpreter the networks have no kernels: with kernels an image would take minutes."""
    if device.type == "cpu":
        monkeypatch.setattr(fused, "fuse", lambda network: None)
        change_backend(monkeypatch, "cuda", unavailable=lambda: None)
        monkeypatch.setattr(cuda, "Gpu", lambda: gpu)
        monkeypatch.setattr(graph_runner, "Gpu", lambda: gpu)
    monkeypatch.setattr(cuda, "CudaGraphCapturer", lambda: recorder)
    monkeypatch.setattr(graph_runner, "CudaGraphCapturer", lambda: recorder)
    return calotype.load("demo", backend="cuda", precision="fp32")


def near(got, expected, device) -> bool:
    pairs = [(np.asarray(a).astype(int), np.asarray(b)) for a, b in zip(got.images, expected.images, strict=True)]
    return max(int(np.abs(a - b).max()) for a, b in pairs) <= (1 if device.type == "cpu" else 8)


def test_images_of_one_graph_equal_the_loops(pipe, eager, device, recorder):
    for seed, prompt in enumerate([RED, "a green cross", ["a blue ring on a white background", "a green cross"]]):
        options = {"prompt": prompt, "seed": seed, "guidance_scale": 4.0, **SMALL}
        got = pipe(**options)
        assert near(got, eager(**options), device)
        assert any("one graph" in note for note in got.report.notes)
        assert set(got.report.seconds) == {"graph"}
    assert recorder.count == 2  # for one image and for two
    assert got.images[0].info["backend"] == "cuda"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_images_in_half_precision_are_close(precision, pipe, eager):
    half = calotype.load("demo", backend="cuda", precision=precision)  # with the stand-ins of `pipe`
    got, expected = half(RED, seed=3, **SMALL), eager(RED, seed=3, **SMALL)
    assert {component.precision for component in got.report.components} == {precision}
    assert psnr(np.asarray(got.images[0]), np.asarray(expected.images[0]), 255.0) >= 28


@pytest.mark.parametrize(
    ("options", "keyword"),
    [
        ({"scheduler": diffusers.DDIMScheduler(clip_sample=True)}, "matrix"),
        ({"guidance_interval": (0.0, 0.5)}, "step to step"),
        ({"output_type": "np"}, "output_type"),
    ],
    ids=["no matrix", "guidance now and then", "floats"],
)
def test_unsupported_jobs_run_step_by_step_with_a_note(options, keyword, pipe, eager, device):
    options = {"prompt": RED, "seed": 3, **SMALL, **options}
    got, expected = pipe(**options), eager(**options)
    (note,) = [n for n in got.report.notes if "step by step" in n]
    assert re.search(keyword, note)
    assert set(got.report.seconds) == {"text", "steps", "decode"}
    if options.get("output_type") == "np":
        assert np.abs(got.images - expected.images).max() <= (1e-3 if device.type == "cpu" else 0.03)
    else:
        assert near(got, expected, device)


def test_a_stream_goes_step_by_step(pipe, eager, device):
    *_, last = pipe.stream(RED, seed=1, **SMALL)
    assert last.step == 2
    assert near(last.result, eager(RED, seed=1, **SMALL), device)
    assert not [n for n in last.result.report.notes if "graph" in n or "step by step" in n]


def test_an_image_without_room_for_a_graph_runs_step_by_step(pipe, eager, device, monkeypatch):
    def full(self, inputs, options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB")

    real = CudaGraphCache._replayed
    monkeypatch.setattr(
        CudaGraphCache,
        "_replayed",
        lambda self, inputs, options: (full if "noise" in inputs else real)(self, inputs, options),
    )
    got = pipe(RED, seed=2, **SMALL)
    assert near(got, eager(RED, seed=2, **SMALL), device)
    (note,) = [n for n in got.report.notes if "step by step" in n]
    assert "no room" in note
    monkeypatch.setattr(CudaGraphCache, "_replayed", real)
    assert any("one graph" in note for note in pipe(RED, seed=2, **SMALL).report.notes)


def test_the_loop_reports_numbers_that_are_not_finite(pipe):
    pipe.plan = replace(pipe.plan, scaling_factor=1e-38)
    broken = calotype.Pipeline(pipe.plan, pipe._components.choice)
    with pytest.raises(calotype.CalotypeError, match="not finite"):
        broken(RED, **SMALL)


def test_a_cancelled_job_does_not_start(pipe):
    call = pipe._start(RED, SMALL)
    pipe.cancel()
    with pytest.raises(Cancelled) as raised:
        pipe._generator.generate(call)
    assert raised.value.data == {"step": 0, "total": 2}
