"""A backend of a list that fails at its first run: the next one takes over, and the report gives the reason."""

import numpy as np
import pytest

from calotype import backends
from calotype.backends import fake as fake_backend
from calotype.backends import open_component
from calotype.errors import BackendError, Cancelled, DeviceFullError, InputError, NotFiniteError
from calotype.pipeline import Pipeline
from tests.helpers.backends import change_backend


class Failing(fake_backend.FakeRunner):
    """A runner whose library raises an error after `good` successful runs."""

    def __init__(self, component, precision, error, good=0):
        super().__init__(component, precision)
        self.backend, self._error, self._good = "openvino", error, good

    def __call__(self, inputs):
        if self.calls >= self._good:
            raise self._error
        return super().__call__(inputs)


def make_unet_fail(monkeypatch, error, good=0):
    """Make openvino's U-Net fail with this error after `good` successful runs."""

    def open_runner(component, artifact):
        if component.name != "unet":
            raise BackendError("this test has only the U-Net")
        return Failing(component, artifact.precision, error, good)

    change_backend(monkeypatch, "openvino", form="diffusers", open=open_runner)


def load(fake, *names):
    return Pipeline(fake.plan, backends.choose(names))


def test_the_next_backend_takes_over_after_a_failed_first_run(fake, monkeypatch):
    make_unet_fail(monkeypatch, RuntimeError("no kernel for this node"))
    result = load(fake, "openvino", "fake")("x", steps=2, seed=1)
    unet = next(c for c in result.report.components if c.name == "unet")
    assert unet.backend == "fake"
    assert "no kernel for this node" in unet.why
    assert any("no kernel for this node" in note and "fake" in note for note in result.report.notes)


@pytest.mark.parametrize("error", [RuntimeError("std::bad_alloc"), MemoryError(), DeviceFullError("full")])
def test_a_full_machine_does_not_switch_backends(fake, monkeypatch, error):
    make_unet_fail(monkeypatch, error)
    with pytest.raises(BackendError):
        load(fake, "openvino", "fake")("x", steps=2, seed=1)


@pytest.mark.parametrize("error", [InputError("wrong"), Cancelled("stopped"), NotFiniteError("infinite")])
def test_errors_of_the_caller_do_not_switch_backends(fake, monkeypatch, error):
    make_unet_fail(monkeypatch, error)
    with pytest.raises(type(error)):
        load(fake, "openvino", "fake")("x", steps=2, seed=1)


def test_a_backend_that_has_worked_before_raises(fake, monkeypatch):
    make_unet_fail(monkeypatch, RuntimeError("no kernel for this node"), good=1)
    with pytest.raises(BackendError, match="no kernel"):
        load(fake, "openvino", "fake")("x", steps=2, seed=1)


@pytest.mark.parametrize("names", ["openvino", ["openvino", "onnxruntime"]])
def test_a_single_backend_raises_and_so_does_the_last_of_a_list(fake, monkeypatch, names):
    unet = fake.plan.components["unet"]  # it has no ONNX file
    sizes = fake.plan.profile.sizes(batch=1, height=64, width=64)
    make_unet_fail(monkeypatch, RuntimeError("no kernel for this node"))
    with pytest.raises(BackendError, match="no kernel"):
        open_component(unet, backends.choose(names))(**{b.name: np.zeros(b.shape(sizes), b.dtype) for b in unet.inputs})
