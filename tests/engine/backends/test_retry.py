"""Outputs that are not finite: a higher precision takes over and the report says so, or the error says what to do."""

import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calotype import backends
from calotype.backends import fake as fake_backend
from calotype.backends import open_component
from calotype.errors import BackendError, NotFiniteError
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent
from tests.helpers.backends import change_backend


def planned(component, *precisions, form="diffusers"):
    artifacts = tuple(Artifact(form=form, path=component.artifacts[0].path, precision=p, check={}) for p in precisions)
    return replace(component, artifacts=artifacts)


@pytest.fixture
def overflowing(monkeypatch):
    """The precisions in which the fake backend overflows, and the precisions that were opened, in order."""
    broken, opened = set(), []

    class Overflowing(fake_backend.FakeRunner):
        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            return {k: np.full_like(v, np.inf) for k, v in outputs.items()} if self.precision in broken else outputs

    def open_runner(component, artifact):
        opened.append(artifact.precision)
        return Overflowing(component, artifact.precision)

    change_backend(monkeypatch, "fake", open=open_runner)
    return broken, opened


def use(pipe, name, *precisions):
    """Make the pipeline open this component with artifacts in these precisions."""
    pipe._components._opened[name] = open_component(
        planned(pipe.plan.components[name], *precisions), backends.choose("fake")
    )


def test_the_first_artifact_that_the_backend_supports_is_used(fake, overflowing):
    unet = fake.plan.components["unet"]
    assert open_component(planned(unet, "fp8", "fp16", "fp32"), backends.choose("fake")).runner.precision == "fp16"
    with pytest.raises(BackendError, match="fp8, fp4"):
        open_component(planned(unet, "fp8", "fp4"), backends.choose("fake"))


def test_an_artifact_that_cannot_be_opened_is_skipped_with_its_reason(fake, overflowing, monkeypatch):
    real = fake_backend.BACKEND.open

    def open_runner(component, artifact):
        if artifact.precision == "bf16":
            raise BackendError("this CPU has no bfloat16")
        return real(component, artifact)

    change_backend(monkeypatch, "fake", open=open_runner)
    opened = open_component(planned(fake.plan.components["unet"], "bf16", "fp32"), backends.choose("fake"))
    assert opened.runner.precision == "fp32"
    assert opened.why == "requested; not fake: this CPU has no bfloat16"


@pytest.mark.parametrize(
    ("precisions", "broken", "expected"),
    [
        (("fp16", "fp32"), {"fp16"}, "fp32"),
        (("fp16", "int8", "bf16", "fp32"), {"fp16"}, "bf16"),  # in the plan's order, never a lower precision
        (("int8", "fp16", "fp32"), {"int8", "fp16"}, "fp32"),
        (("fp16", "fp32", "bf16"), {"fp16"}, "fp32"),
    ],
)
def test_a_higher_precision_takes_over_for_good(fake, overflowing, precisions, broken, expected):
    use(fake, "unet", *precisions)
    overflowing[0].update(broken)
    overflowing[1].clear()
    result = fake("x", steps=4, seed=1)
    note = f"U-Net: numbers not finite in {precisions[0]}, retried in "
    assert result.report.notes[0].startswith(note)
    assert result.report.notes[-1].endswith(f"retried in {expected}")
    unet = next(c for c in result.report.components if c.name == "unet")
    assert unet.precision == expected
    assert "its numbers are not finite" in unet.why
    opened = list(overflowing[1])
    assert fake("x", steps=4, seed=1).report.notes == result.report.notes
    assert overflowing[1] == opened  # the second image starts with the last runner


@pytest.mark.parametrize(("name", "display_name"), [("vae_decoder", "VAE decoder"), ("text_encoder", "text encoder")])
def test_every_component_can_switch_precision(fake, overflowing, name, display_name):
    use(fake, name, "fp16", "fp32")
    overflowing[0].add("fp16")
    assert fake("x", steps=2, seed=1).report.notes == (f"{display_name}: numbers not finite in fp16, retried in fp32",)


def test_without_a_higher_precision_the_error_has_the_command(fake, overflowing):
    use(fake, "unet", "fp16", "int8")
    overflowing[0].add("fp16")
    with pytest.raises(NotFiniteError, match="--precision bf16") as error:
        fake("x", steps=3, seed=1)
    assert "\n" not in str(error.value)
    assert error.value.data == {"backend": "fake", "component": "unet", "precision": "fp16", "step": 1}


def test_not_finite_in_float32_means_damaged_weights(fake, overflowing):
    use(fake, "vae_decoder", "fp32")
    overflowing[0].add("fp32")
    with pytest.raises(NotFiniteError, match="damaged"):
        fake("x", steps=1, seed=1)


def test_inputs_that_are_not_finite_are_the_callers_fault(fake, overflowing):
    use(fake, "vae_decoder", "fp16", "fp32")
    with pytest.raises(NotFiniteError, match="inputs"):
        fake.decode(np.full((1, 4, 16, 16), np.nan, dtype=np.float32))
    assert fake.component("vae_decoder").retried == ()


def test_threads_that_fail_together_switch_once(fake, overflowing):
    opened = open_component(planned(fake.plan.components["vae_decoder"], "fp16", "fp32"), backends.choose("fake"))
    overflowing[0].add("fp16")
    latents = np.zeros((1, 4, 16, 16), dtype=np.float32)
    workers = [threading.Thread(target=opened, kwargs={"latent_sample": latents}) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(opened.retried) == 1
    assert overflowing[1] == ["fp16", "fp32"]


def test_onnxruntime_overflows_in_fp16_and_goes_on_in_fp32(tmp_path):
    """A real backend: 70,000 is out of fp16's range."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    cast = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
    artifacts = []
    for precision, kind in cast.items():
        nodes = [
            helper.make_node("Cast", ["x"], ["a"], to=kind),
            helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
        ]
        graph = helper.make_graph(nodes, "g", [x], [y])
        path = tmp_path / f"{precision}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        artifacts.append(Artifact(form="onnx", path=path, precision=precision, check={}))
    binding = {n: Binding(name=n, dtype="float32", dims=("batch", 4)) for n in "xy"}
    component = PlannedComponent(
        name="unet", inputs=(binding["x"],), outputs=(binding["y"],), artifacts=tuple(artifacts), refused={}
    )
    opened = open_component(component, backends.choose("onnxruntime"))
    assert opened(x=np.full((1, 4), 100, dtype=np.float32))["y"][0, 0] == 100
    assert opened.retried == ()
    assert opened(x=np.full((1, 4), 70_000, dtype=np.float32))["y"][0, 0] == 70_000
    assert opened.retried == ("U-Net: numbers not finite in fp16, retried in fp32",)
