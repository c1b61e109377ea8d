"""`accelerate(precision=)`, as that of `load`. The CPU need not have bf16: a stand-in scales the outputs of float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import calotype
from calotype.backends.openvino import runner
from calotype.drop_in.image_check import MIN_DB_HALF
from calotype.errors import BackendError, BuildError, InputError
from calotype.export.builder import precision_trial
from tests.helpers.backends import change_backend
from tests.helpers.pipelines.accelerated import generate, reasons

USED = ("text_encoder", "unet", "vae.decoder")


class Inexact:
    """OpenVINO in float32, with a relative error in each number of the outputs."""

    backend, notes, memory_bytes, width = "openvino", (), None, 2

    def __init__(self, exact, precision, error):
        self._exact, self.precision, self._error = exact, precision, np.float32(error)

    def __call__(self, inputs):
        return {name: array * (1 + self._error) for name, array in self._exact(inputs).items()}


@pytest.fixture
def errors(monkeypatch, tmp_path):
    """A CPU on which OpenVINO has bf16. Set the relative errors by component; the others are 5e-3."""
    monkeypatch.delenv("CALOTYPE_PRECISION")
    by_component, opens = {}, runner.BACKEND.open

    def opened(component, artifact):
        error = by_component.get(component.name, 5e-3) if artifact.precision == "bf16" else 0
        return Inexact(opens(component, replace(artifact, precision="fp32")), artifact.precision, error)

    change_backend(monkeypatch, "openvino", open=opened, unsupported=lambda _: None, hardware=lambda: str(tmp_path))
    return by_component


def precisions(target) -> dict[str, str]:
    modules = calotype.accelerate_report(target).modules
    return {module.name: module.precision for module in modules if module.compiled_calls}


def test_auto_is_checked_on_the_first_call_and_kept(errors, pipe, monkeypatch):
    calotype.accelerate(pipe, backend="openvino")
    generate(pipe)
    assert precisions(pipe) == dict.fromkeys(USED, "bf16")
    report = calotype.accelerate_report(pipe)
    assert not reasons(report)
    assert report.image_psnr_db > MIN_DB_HALF
    assert report["unet"].precision_reason.startswith("bf16")
    assert 1e-3 < max(report["unet"].checks.values()) < 1e-1
    monkeypatch.setattr(precision_trial, "error_of", lambda *_: pytest.fail("checked again"))
    calotype.accelerate(pipe, backend="openvino", verify=False)
    generate(pipe)
    assert set(precisions(pipe).values()) == {"bf16"}


def test_what_differs_stays_in_float32_and_says_why(errors, pipe):
    errors["text_encoder"] = 0.2
    encoder = calotype.accelerate(pipe.text_encoder, backend="openvino", verify=False)
    with torch.no_grad():
        encoder(torch.zeros(1, 77, dtype=torch.int64))
    (module,) = calotype.accelerate_report(encoder).modules
    assert module.precision == "fp32"
    assert "not bf16" in module.precision_reason


def test_each_network_may_have_its_own(errors, pipe):
    calotype.accelerate(pipe, backend="openvino", precision={"unet": "fp32", "vae_decoder": "bf16"}, verify=False)
    generate(pipe)
    assert precisions(pipe) == {"text_encoder": "bf16", "unet": "fp32", "vae.decoder": "bf16"}
    calotype.accelerate(pipe.vae, backend="openvino", precision="vae_decoder=fp32", verify=False)
    with torch.no_grad():
        pipe.vae.decode(torch.zeros(1, 4, 4, 4))
    assert precisions(pipe.vae) == {"AutoencoderKL.decoder": "fp32"}


def test_an_overflow_takes_float32(errors, pipe):
    unet = calotype.accelerate(pipe.unet, backend="openvino", verify=False)
    inputs = torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 32)
    with torch.no_grad():
        unet(*inputs)
        (loaded,) = unet.forward._artifacts.loaded
        loaded.runner._error = np.float32(np.inf)
        assert unet(*inputs).sample.isfinite().all()
    (module,) = calotype.accelerate_report(unet).modules
    assert (module.precision, module.compiled_calls) == ("fp32", 2)
    assert any("retried in fp32" in note for note in module.notes)


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        ("half", InputError),
        ({"unet": "float16"}, InputError),
        ({"text_encoder_2": "fp32"}, InputError),
        (None, InputError),
        ("fp16", BackendError),
    ],
)
def test_what_cannot_be_is_refused(pipe, precision, error):
    with pytest.raises(error):
        calotype.accelerate(pipe, backend="onnxruntime", precision=precision)
    assert "forward" not in pipe.unet.__dict__


def test_int8_needs_a_build(pipe):
    unet = calotype.accelerate(pipe.unet, backend="onnxruntime", precision="int8", verify=False)
    with torch.no_grad(), pytest.raises(BuildError) as raised:
        unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 32))
    assert raised.value.component == "unet"
    assert raised.value.hint.startswith("calotype build")
