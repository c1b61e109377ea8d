"""LoRAs on stand-ins: set, changed and removed on engines (by refits) and on GPU sessions of ONNX Runtime."""

import pytest

from calotype.backends.onnxruntime import cuda as ort_cuda
from calotype.errors import BackendError
from calotype.export import build
from calotype.loading import load
from tests.helpers import tensorrt_standin
from tests.helpers.backends import change_backend
from tests.helpers.small_builds import levels, small_spec

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def outline(demo_folder):
    return demo_folder / "outline.safetensors"


def check_updates_and_restore(pipe, eager, outline) -> None:
    """Set A, B, A and no LoRA: images repeat exactly, and with A they equal eager's."""
    original = pipe(PROMPT, **SMALL)
    results = []
    for weight in (1.0, -2.0, 1.0):
        pipe.set_lora((outline, weight))
        results.append(pipe(PROMPT, **SMALL))
    eager.set_lora((outline, 1.0))
    expected = eager(PROMPT, **SMALL)
    eager.set_lora(None)
    a, b, again = results
    assert levels(a, again) == 0
    assert levels(a, expected) <= 1
    assert min(levels(a, b), levels(a, original), levels(b, original)) > 5
    pipe.set_lora(None)
    assert levels(pipe(PROMPT, **SMALL), original) == 0


@pytest.fixture
def refittable(on_a_gpu, tmp_path):
    """A plan whose engines can be refitted."""
    build(small_spec("tensorrt", tmp_path / "plan", engine=("refit",)))
    return tmp_path / "plan"


def test_an_engine_is_refitted_and_restored(refittable, outline, pipes):
    pipe = load(refittable)
    assert {c.runner.backend for c in (pipe.component("unet"), pipe.component("text_encoder"))} == {"tensorrt"}
    check_updates_and_restore(pipe, pipes["eager"], outline)
    report = pipe(PROMPT, **SMALL).report
    assert any("one graph" in note for note in report.notes)
    assert report.loras == ()


@pytest.mark.parametrize(("failing_refit", "keyword"), [(1, "did not apply"), (2, "did not remove")])
def test_a_refit_that_fails_is_refused(failing_refit, keyword, refittable, outline):
    pipe = load(refittable)
    original = pipe(PROMPT, **SMALL)
    tensorrt_standin.Refitter._lost = failing_refit
    with pytest.raises(BackendError, match=keyword):
        pipe.set_lora(outline)
        pipe.set_lora(None)
    assert len(pipe.loras) == failing_refit - 1  # unchanged
    pipe.set_lora(None)
    assert levels(pipe(PROMPT, **SMALL), original) == 0


def test_an_engine_that_cannot_be_refitted_says_what_to_build(on_a_gpu, outline):
    pipe = load("demo", backend="tensorrt")
    with pytest.raises(BackendError, match="--engine refit"):
        pipe.set_lora(outline)
    assert pipe.loras == ()


def test_a_session_on_a_gpu_is_reopened_and_restored(on_a_gpu, outline, pipes, monkeypatch):
    change_backend(monkeypatch, "onnxruntime-cuda", unavailable=lambda: None)
    monkeypatch.setattr(ort_cuda, "CUDA", ort_cuda.Provider(name="CPUExecutionProvider", device="cpu"))
    pipe = load("demo", backend="onnxruntime-cuda")
    assert pipe.component("unet").runner.backend == "onnxruntime-cuda"
    check_updates_and_restore(pipe, pipes["eager"], outline)
