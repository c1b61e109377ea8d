"""LoRAs set, changed and removed on engines, by refitting, and on ONNX Runtime's sessions on a GPU: on stand-ins."""

import pytest

from calotype.backends.onnxruntime import cuda as ort_cuda
from calotype.errors import BackendError
from calotype.export import build
from calotype.loading import load

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def outline(demo_folder):
    return demo_folder / "outline.safetensors"


def there_and_back(pipe, eager, outline, levels) -> None:
    """A, B, A and none: what it paints, exactly; with A, what eager paints."""
    none = pipe(PROMPT, **SMALL)
    painted = []
    for weight in (1.0, -2.0, 1.0):
        pipe.set_lora((outline, weight))
        painted.append(pipe(PROMPT, **SMALL))
    eager.set_lora((outline, 1.0))
    wanted = eager(PROMPT, **SMALL)
    eager.set_lora(None)
    a, b, again = painted
    assert levels(a, again) == 0
    assert levels(a, wanted) <= 1
    assert min(levels(a, b), levels(a, none), levels(b, none)) > 5
    pipe.set_lora(None)
    assert levels(pipe(PROMPT, **SMALL), none) == 0


@pytest.fixture
def refittable(on_a_gpu, spec, tmp_path):
    """A plan whose engines can be refitted."""
    build(spec("tensorrt", tmp_path / "plan", engine=("refit",)))
    return tmp_path / "plan"


def test_an_engine_is_refitted_and_put_back(refittable, outline, pipes, levels):
    pipe = load(refittable)
    assert {c.runner.backend for c in (pipe.component("unet"), pipe.component("text_encoder"))} == {"tensorrt"}
    there_and_back(pipe, pipes["eager"], outline, levels)
    painted = pipe(PROMPT, **SMALL)
    assert "painted as one graph" in painted.report.notes
    assert painted.report.loras == ()


@pytest.mark.parametrize(("lost", "told"), [(1, "did not apply"), (2, "did not remove")])
def test_a_refit_that_did_not_take_is_told(lost, told, refittable, standin, outline, levels):
    pipe = load(refittable)
    none = pipe(PROMPT, **SMALL)
    standin.Refitter._lost = lost
    with pytest.raises(BackendError, match=told):
        pipe.set_lora(outline)
        pipe.set_lora(None)
    assert len(pipe.loras) == lost - 1  # all as it was
    pipe.set_lora(None)
    assert levels(pipe(PROMPT, **SMALL), none) == 0


def test_an_engine_that_cannot_be_refitted_says_which_can(on_a_gpu, outline):
    pipe = load("demo", backend="tensorrt")
    with pytest.raises(BackendError, match=r"the tensorrt engine of the unet was not built .* --engine refit\), or"):
        pipe.set_lora(outline)
    assert pipe.loras == ()


def test_a_session_on_a_gpu_is_opened_anew_and_put_back(on_a_gpu, outline, pipes, levels, monkeypatch):
    monkeypatch.setattr(ort_cuda, "unavailable", lambda: None)
    monkeypatch.setattr(ort_cuda, "CUDA", ort_cuda.Provider(name="CPUExecutionProvider", device="cpu"))
    pipe = load("demo", backend="onnxruntime-cuda")
    assert pipe.component("unet").runner.backend == "onnxruntime-cuda"
    there_and_back(pipe, pipes["eager"], outline, levels)
