"""Lazy traces: a component is traced when it is opened, and what text-to-image does not need at its first use."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.errors import BackendError, CheckError, SourceError
from calotype.export import prepare_lazily
from calotype.export.onnx import trace_step as tracing

IMAGE = Image.new("RGB", (64, 64), (200, 40, 40))
SMALL = {"height": 64, "width": 64, "steps": 2, "seed": 0}


@pytest.fixture
def model(model_copy, tmp_path, monkeypatch, pipe):
    """The demonstration model in a home where only its VAE encoder is not traced."""
    encoder = tracing.traced(*_described(pipe)).path.parent.name
    for component in pipe.plan.components.values():  # not the home: other tests write into it meanwhile
        artifact = component.artifact("onnx")
        if artifact is not None and artifact.path.parent.name != encoder:
            shutil.copytree(artifact.path.parent, tmp_path / "home" / "store" / artifact.path.parent.name)
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    return model_copy


def _described(pipe):
    from calotype.export.sources.source import read_source
    from calotype.plan.family import family_of

    source = read_source("demo")
    family = family_of(source.configs)
    return family.components["vae_encoder"], source, family.profile


@pytest.fixture
def traces(monkeypatch):
    """The names of traced components, in order."""
    done, trace = [], tracing._trace_and_check

    def counted(component, *arguments):
        done.append(component.name)
        return trace(component, *arguments)

    monkeypatch.setattr(tracing, "_trace_and_check", counted)
    return done


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_vae_encoder_is_traced_for_the_first_input_image(model, traces, capsys, backend):
    pipe = calotype.load(model, backend=backend)
    pipe("x", **SMALL)
    assert traces == []
    pipe("x", image=IMAGE, **SMALL)
    pipe.encode(IMAGE)
    assert traces == ["vae_encoder"]
    assert capsys.readouterr().err.count("tracing the vae_encoder") == 1
    assert pipe.component("vae_encoder").runner.backend == backend
    calotype.load(model, backend=backend).encode(IMAGE)
    assert traces == ["vae_encoder"]


def test_nothing_is_traced_before_the_networks_are_opened(model, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "empty"))
    lazy = prepare_lazily(model)
    assert not lazy.traced
    assert traces == []


def test_eager_traces_nothing(model, traces):
    calotype.load(model, backend="eager").encode(IMAGE)
    assert traces == []


def test_two_threads_trace_once_and_text_to_image_does_not_wait(model, monkeypatch, pipe):
    """The trace waits until a text-to-image call is done."""
    loaded, go, begun, done = calotype.load(model, backend="onnxruntime"), threading.Event(), threading.Event(), []

    def held(component, weights, profile, folder):
        done.append(component.name)
        begun.set()
        assert go.wait(60)
        raise CheckError("no")

    monkeypatch.setattr(tracing, "_trace_and_check", held)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(loaded.component, "vae_encoder") for _ in range(2)]
        assert begun.wait(60)
        loaded("x", **SMALL)
        go.set()
        for one in both:
            with pytest.raises(BackendError):
                one.result(60)
    assert set(done) == {"vae_encoder"}


def test_auto_uses_eager_if_the_trace_fails(model, monkeypatch):
    def refuse(*_):
        raise CheckError("no such operator")

    monkeypatch.setattr(tracing, "_trace_and_check", refuse)
    opened = calotype.load(model).component("vae_encoder")
    assert opened.runner.backend == "eager"
    assert "no such operator" in opened.why


@pytest.mark.parametrize("change", ["changed", "deleted"])
def test_changed_or_deleted_files_are_an_error_and_loaded_components_still_work(model, traces, change):
    pipe = calotype.load(model, backend="onnxruntime")
    before = pipe("x", **SMALL, output_type="np").images
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    if change == "deleted":
        shutil.rmtree(model)
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(SourceError):
            pipe.encode(IMAGE)
    assert traces == []
    np.testing.assert_array_equal(pipe("x", **SMALL, output_type="np").images, before)
