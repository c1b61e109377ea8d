"""LoRAs that cannot be set or removed, and LoRAs that change while images are generated."""

import threading
from pathlib import Path

import numpy as np
import pytest

import calotype
from calotype.backends import choose
from calotype.errors import BackendError, InputError, SourceError
from calotype.export.quality.metrics import psnr
from calotype.system.rwlock import ReadWriteLock
from calotype.weights.delta import NO_DELTAS
from tests.helpers.loras import OPTIONS, PROMPT, SIZE, generate, pipelines_and_loras


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    return pipelines_and_loras(request, tmp_path_factory.mktemp("loras"))


def test_a_change_without_effect_is_an_error(loaded, monkeypatch):
    pipes, loras = loaded
    pipe, (a, b) = pipes("demonstration", "onnxruntime"), loras("demonstration")
    none = generate(pipe)
    unet = pipe.component("unet").runner
    monkeypatch.setattr(unet, "update_weights", lambda patches: None)
    with pytest.raises(BackendError, match="onnxruntime did not apply"):
        pipe.set_lora(a)
    assert pipe.loras == ()
    monkeypatch.undo()
    np.testing.assert_array_equal(generate(pipe), none)
    pipe.set_lora(b)
    monkeypatch.setattr(unet, "update_weights", lambda patches: None)
    with pytest.raises(BackendError, match="did not remove"):
        pipe.set_lora(None)
    monkeypatch.undo()
    assert pipe.loras == ((str(b), 1.0),)
    pipe.component("unet").update_weights(NO_DELTAS)
    pipe._generator.loras.__init__(pipe.plan, pipe.component)
    pipe.component("text_encoder").update_weights(NO_DELTAS)
    np.testing.assert_array_equal(generate(pipe), none)


def test_a_network_that_cannot_be_restored_generates_no_images(loaded, monkeypatch):
    """Each network is restored independently of the others, and the first error is raised."""
    pipes, loras = loaded
    plan, (a, _) = pipes("demonstration", "onnxruntime").plan, loras("demonstration")
    pipe = calotype.pipeline.Pipeline(plan, choose("onnxruntime"))
    none = generate(pipe)
    unet, text = (pipe.component(name).runner for name in ("unet", "text_encoder"))

    def fail(runner, message, *, with_loras):
        def open_session(deltas, real=runner._open):
            if bool(deltas) == with_loras:
                raise BackendError(message)
            return real(deltas)

        monkeypatch.setattr(runner, "_open", open_session)

    fail(unet, "no room for the change", with_loras=True)
    fail(text, "no room to put it back", with_loras=False)
    with pytest.raises(BackendError, match="no room for"):
        pipe.set_lora(a)
    assert pipe.loras == ()
    assert unet._session is not None
    for _ in range(2):
        with pytest.raises(BackendError, match="restored") as raised:
            generate(pipe)
        assert raised.value.component == "text_encoder"
        with pytest.raises(BackendError, match="no room"):
            pipe.set_lora(a)
    ids = np.zeros((1, 77), dtype=np.int64)
    with pytest.raises(BackendError, match="changed weights") as raised:
        pipe.component("text_encoder")(input_ids=ids)
    assert raised.value.data == {"backend": "onnxruntime", "component": "text_encoder"}
    monkeypatch.undo()
    pipe.set_lora(None)
    np.testing.assert_array_equal(generate(pipe), none)


def test_a_change_is_checked_at_the_shapes_of_the_last_image(fake):
    """Backends have compiled these shapes for the U-Net's session."""
    fake("a red ring", steps=1, height=64, width=96)
    tried = fake._generator.loras._test_inputs("unet", fake.component("unet"))
    assert tried["sample"].shape == (2, 4, 8, 12)


def test_a_fallback_artifact_has_the_loras_as_well(loaded):
    """The fallback for outputs that are not finite."""
    pipes, loras = loaded
    plan, (a, _) = pipes("demonstration", "onnxruntime").plan, loras("demonstration")
    pipe = calotype.pipeline.Pipeline(plan, choose(["onnxruntime", "eager"]))
    pipe.set_lora(a)
    expected, unet = generate(pipe), pipe.component("unet")
    unet._open(iter([("eager", plan.components["unet"].artifact("diffusers"))]), {})
    assert unet.runner.backend == "eager"
    assert psnr(generate(pipe), expected) > 80
    pipe.set_lora(None)
    assert psnr(generate(pipe), generate(pipes("demonstration", "eager"))) > 80


def test_no_image_mixes_two_sets_of_loras(loaded):
    """Threads generate while LoRAs change: each image has one of two sets, and its report names it."""
    pipes, loras = loaded
    pipe, (a, _) = pipes("demonstration", "onnxruntime"), loras("demonstration")
    expected = {(): generate(pipe, steps=2)}
    pipe.set_lora(a)
    expected[((str(a), 1.0),)] = generate(pipe, steps=2)
    matches, stop = [], threading.Event()

    def generate_until_stopped():
        while not stop.is_set():
            result = pipe(PROMPT, **{**OPTIONS, **SIZE, "steps": 2})
            matches.append(np.array_equal(result.images, expected[result.report.loras]))

    threads = [threading.Thread(target=generate_until_stopped) for _ in range(2)]
    for thread in threads:
        thread.start()
    for lora in (None, a, None, a, None):
        pipe.set_lora(lora)
    stop.set()
    for thread in threads:
        thread.join()
    assert matches
    assert all(matches)
    assert pipe.loras == ()


def test_an_open_stream_keeps_its_weights(loaded):
    pipes, loras = loaded
    pipe, (a, _) = pipes("demonstration", "eager"), loras("demonstration")
    none, stream = generate(pipe, steps=4), pipe.stream(PROMPT, **OPTIONS | {"steps": 4}, **SIZE)
    next(stream)
    with pytest.raises(InputError, match="open stream"):
        pipe.set_lora(a)
    change = threading.Thread(target=pipe.set_lora, args=(a,))
    change.start()
    next(stream)
    np.testing.assert_array_equal(generate(pipe, steps=4), none)  # the thread with the open stream does not wait
    *_, last = stream
    np.testing.assert_array_equal(last.result.images, none)
    change.join()
    assert pipe.loras == ((str(a), 1.0),)
    abandoned = pipe.stream(PROMPT, **OPTIONS, **SIZE)
    next(abandoned)
    abandoned.close()
    pipe.set_lora(None)


def test_images_requested_while_a_change_waits_come_after_it():
    gate, order = ReadWriteLock(), []
    first, waiting = threading.Event(), threading.Event()

    def change():
        waiting.set()
        with gate.write():
            order.append("change")

    def generate_image():
        with gate.read():
            order.append("image")

    with gate.read():
        changing = threading.Thread(target=change)
        changing.start()
        waiting.wait()
        while not gate._writers:
            first.wait(0.001)
        generating = threading.Thread(target=generate_image)
        generating.start()
        generating.join(0.1)
        assert generating.is_alive()
        assert order == []
    changing.join()
    generating.join()
    assert order == ["change", "image"]


def test_a_backend_without_lora_support_is_an_error(loaded, fake):
    _, loras = loaded
    with pytest.raises(BackendError, match="cannot change the weights"):
        fake.set_lora(loras("demonstration")[0])
    fake.set_lora(None)
    with pytest.raises(SourceError, match="no LoRA file") as raised:
        calotype.load("demo", backend="fake", lora="nowhere.safetensors")
    assert raised.value.path == Path("nowhere.safetensors")
