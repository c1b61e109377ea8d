"""`load(precision="auto")`: half precision where the hardware has it, after a comparison with float32 that is kept."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import calotype
from calotype.backends.fake import FakeRunner
from calotype.errors import BackendError, BuildError, InputError
from calotype.export.builder import built, precision_choice, precision_trial
from calotype.export.builder.built import keep_built
from calotype.export.builder.prepare import prepare_lazily
from calotype.export.onnx import trace_step as tracing
from calotype.export.steps.stored_step import StoredStep
from calotype.export.store.store import key_of
from calotype.plan.plan import Artifact
from tests.helpers.backends import change_backend

SMALL = {"steps": 2, "height": 64, "width": 64, "seed": 1, "output_type": "np"}
USED = ("text_encoder", "unet", "vae_decoder")


class Hardware:
    """What the stand-in for a GPU does.

    Attributes:
        natively: the precisions that it has.
        errors: relative errors of outputs by component and precision; 1e-3 for others in half precision.
        opened: what was opened, in order.
    """

    def __init__(self):
        self.natively, self.errors, self.opened = {"fp32", "bf16", "fp16"}, {}, []

    def unsupported(self, precision):
        return None if precision in self.natively else f"it has no {precision}"

    def open(self, component, artifact):
        self.opened.append((component.name, artifact.precision))
        error = self.errors.get(self.opened[-1], 0.0 if artifact.precision == "fp32" else 1e-3)
        return Inexact(component, artifact.precision, error)


class Inexact(FakeRunner):
    def __init__(self, component, precision, error):
        super().__init__(component, precision)
        self._error = error

    def __call__(self, inputs):
        return {name: array * np.float32(1 + self._error) for name, array in super().__call__(inputs).items()}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CALOTYPE_PRECISION")
    hardware = Hardware()
    more = {"unsupported": hardware.unsupported, "hardware": lambda: str(tmp_path), "open": hardware.open}
    change_backend(monkeypatch, "fake", computes=("fp16", "bf16", "fp32"), **more)
    return hardware


def load(**more):
    return calotype.load("demo", backend="fake", **more)


def precisions_of(pipe) -> dict[str, str]:
    return {each.component.name: each.runner.precision for each in pipe._components.opened}


def test_half_is_the_default_and_is_checked_once(gpu, monkeypatch):
    pipe = load()
    assert precisions_of(pipe) == dict.fromkeys(USED, "fp16")
    reasons = {c.precision_reason.partition(" ")[0] for c in pipe("x", **SMALL).report.components}
    assert reasons == {"fp16:"}
    monkeypatch.setattr(precision_trial, "errors_of", lambda *_: pytest.fail("checked again"))
    assert precisions_of(load()) == precisions_of(pipe)
    assert set(precisions_of(load(precision="fp32")).values()) == {"fp32"}


def test_other_hardware_is_checked_again(gpu, monkeypatch):
    load()
    change_backend(monkeypatch, "fake", hardware=lambda: "another")
    gpu.errors = {("unet", "fp16"): 0.1}
    assert precisions_of(load())["unet"] == "bf16"


@pytest.mark.parametrize("error", [0.1, np.inf, np.nan])
def test_what_differs_takes_the_next_precision_and_says_why(gpu, error):
    gpu.errors = dict.fromkeys([("vae_decoder", "fp16"), ("unet", "fp16"), ("unet", "bf16")], error)
    pipe = load()
    assert precisions_of(pipe) == {"text_encoder": "fp16", "unet": "fp32", "vae_decoder": "bf16"}
    unet = pipe.component("unet").precision_reason
    assert unet.startswith("not fp16")
    assert "not bf16" in unet


def test_hardware_without_half_stays_in_float32_and_checks_nothing(gpu):
    gpu.natively = {"fp32"}
    pipe = load()
    assert gpu.opened == [(name, "fp32") for name in USED]
    assert "it has no bf16" in pipe.component("unet").precision_reason


@pytest.mark.parametrize("only", ["fp32", "bf16"])
def test_the_environment_limits_what_auto_takes(gpu, monkeypatch, only):
    monkeypatch.setenv("CALOTYPE_PRECISION", only)
    assert set(precisions_of(load()).values()) == {only}
    assert precisions_of(load(precision={"unet": "fp16"}))["unet"] == "fp16"
    monkeypatch.setenv("CALOTYPE_PRECISION", "half")
    with pytest.raises(InputError) as refused:
        load()
    assert refused.value.got == "half"


def test_a_check_that_fails_leaves_float32_and_is_not_kept(gpu, monkeypatch):
    calls = []

    def broken(*arguments):
        calls.append(arguments)
        raise BackendError("no driver")

    with monkeypatch.context() as patch:
        patch.setattr(precision_trial, "errors_of", broken)
        unet = load().component("unet")
        assert len(calls) == 2  # one for each precision, not for each component
        assert unet.runner.precision == "fp32"
        assert "no driver" in unet.precision_reason
    assert load().component("unet").runner.precision == "fp16"


def test_a_gpu_too_small_for_float32_is_compared_with_pytorch(gpu, monkeypatch):
    references = []

    def errors_of(model, name, precision, choice, reference):
        references.append(reference.names)
        if reference.names == choice.names:
            raise BackendError("the GPU has no room")
        return {name: 1e-3}

    monkeypatch.setattr(precision_trial, "errors_of", errors_of)
    monkeypatch.setattr(precision_choice, "ON_GPU", ("fake",))
    assert load().component("unet").runner.precision == "fp16"
    assert references[:2] == [("fake",), ("eager",)]


def test_a_later_component_is_checked_at_its_first_use_once_for_all_threads(gpu):
    pipe = load(controlnet="demo-canny")
    gpu.opened.clear()
    with ThreadPoolExecutor(4) as pool:
        runners = [job.result().runner for job in [pool.submit(pipe.component, "controlnet") for _ in range(4)]]
    assert len({id(runner) for runner in runners}) == 1
    assert gpu.opened.count(("controlnet", "fp16")) == 2  # of the check, and of the pipeline
    assert pipe.component("vae_encoder").runner.precision == "fp16"


def test_an_overflow_in_a_later_call_takes_float32(gpu):
    pipe = load()
    pipe.component("unet").runner._error = np.inf
    report = pipe("x", **SMALL).report
    assert next(c for c in report.components if c.name == "unet").precision == "fp32"
    assert any("retried in fp32" in note for note in report.notes)


def test_onnx_files_compute_in_bf16_where_openvino_has_it(gpu, pipe, monkeypatch):
    class OnOpenVino(Inexact):
        backend = "openvino"

    def opens(component, artifact):
        return OnOpenVino(component, artifact.precision, 1e-3 if artifact.precision == "bf16" else 0)

    change_backend(monkeypatch, "openvino", open=opens, unsupported=lambda _: None, hardware=lambda: "bf16 machine")
    half = calotype.load("demo")
    assert precisions_of(half) == dict.fromkeys(USED, "bf16")
    assert precisions_of(calotype.load("demo", precision={"unet": "fp32"}))["unet"] == "fp32"


def test_int8_opens_what_a_build_left_in_the_cache(pipe, tmp_path, monkeypatch):
    own = {"test": str(tmp_path)}  # other tests build in int8
    monkeypatch.setattr(built, "key_of", lambda parts: key_of({**parts, **own}))
    with pytest.raises(BuildError, match="--precision int8") as raised:
        calotype.load("demo", backend="openvino", precision="int8")
    assert raised.value.hint.startswith("calotype build demo --backend openvino")
    lazy = prepare_lazily("demo")
    for name in lazy.family.components:
        traced = lazy.float32(name if name in USED else "unet")  # any file stands for a network that is not opened
        files = traced.artifacts[0].path.parent

        def copied(folder, files=files):
            shutil.copytree(files, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("entry.json"))
            return {}

        step = StoredStep(depends_on={"copy": [name, str(tmp_path)]}, label={"component": name})
        precision = "int8" if name in ("unet", "vae_decoder") else "fp32"
        artifact = Artifact(form="onnx", path=step.run(copied).folder / "model.onnx", precision=precision, check={})
        keep_built(lazy.family.components[name], lazy.source, "onnxruntime", traced.with_artifacts(artifact))
    loaded = calotype.load("demo", backend="onnxruntime", precision="int8")
    assert precisions_of(loaded) == {"text_encoder": "fp32", "unet": "int8", "vae_decoder": "int8"}
    listed = calotype.load("demo", backend=["openvino", "onnxruntime"], precision="int8").component("unet")
    assert (listed.runner.backend, listed.runner.precision) == ("onnxruntime", "int8")  # for which it was built
    monkeypatch.setattr(tracing, "_trace_and_check", lambda *_: pytest.fail("traced"))
    with pytest.raises(BuildError) as raised:
        calotype.load("demo", backend="onnxruntime", precision={"text_encoder": "int8"})
    assert raised.value.component == "text_encoder"
