"""A complete and unchanged plan is opened. Others are refused with the command that builds them again."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import calotype
from calotype.backends import compatibility
from calotype.errors import BackendError, SourceError
from calotype.plan.plan import read_plan
from calotype.system.nvidia import gpu_name


@pytest.fixture
def copy(saved_plan, tmp_path) -> Path:
    """A plan that a test may damage."""
    return Path(shutil.copytree(saved_plan, tmp_path / "a plän"))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as refused:
        calotype.load(folder)
    message = str(refused.value)
    assert "\n" not in message
    assert "calotype build" in message
    return message


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data, before = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk would


def test_every_truncated_changed_or_missing_file_is_detected(copy, saved_plan):
    names = files(saved_plan)
    assert {"plan.json", "unet/model.onnx", "unet/model.onnx.data", "tokenizer/vocab.json"} < set(names)
    for name in names:
        for damage in (truncate, flip, Path.unlink):
            damage(copy / name)
            if name == "plan.json" and damage is Path.unlink:
                with pytest.raises(SourceError):  # a folder without a manifest is not a plan
                    calotype.load(copy)
            elif not (name == "plan.json" and damage is truncate):  # its last byte has no meaning
                assert name.split("/")[-1] in refusal(copy)
            shutil.copy2(saved_plan / name, copy / name)
    calotype.load(copy)


def test_exchanged_artifacts_are_detected(copy):
    one, two = copy / "vae_decoder" / "model.onnx", copy / "vae_encoder" / "model.onnx"
    other = copy / "other"
    one.rename(other)
    two.rename(one)
    other.rename(two)
    assert "model.onnx" in refusal(copy)


def test_an_edited_manifest_is_detected(copy):
    manifest = copy / "plan.json"
    data = json.loads(manifest.read_text())
    data["scaling_factor"] *= 2
    manifest.write_text(json.dumps(data))
    assert "changed" in refusal(copy)
    manifest.write_text("{}")
    assert "calotype build" in refusal(copy)
    data["version"] = 1
    manifest.write_text(json.dumps(data))
    assert "version 1," in refusal(copy)


def test_a_plan_generates_the_same_image_as_its_model(saved_plan, pipe, monkeypatch):
    monkeypatch.setattr("calotype.export.prepare", lambda *_, **__: pytest.fail("a plan needs no exporter"))
    import numpy as np

    settings = {"steps": 4, "seed": 3, "output_type": "latent"}
    opened = calotype.load(saved_plan)
    np.testing.assert_array_equal(opened("a red ring", **settings).images, pipe("a red ring", **settings).images)


@pytest.fixture
def plan(saved_plan):
    return read_plan(saved_plan)


def reason_for(plan, **build):
    return compatibility.incompatibility_reason(replace(plan, build={**plan.build, **build}))


def test_an_older_runtime_is_refused_and_a_newer_one_noted(plan, saved_plan, monkeypatch):
    assert compatibility.incompatibility_reason(plan) is None
    assert compatibility.version_drift_note(plan) is None
    monkeypatch.setattr(compatibility, "installed", lambda _: "1.19.2")
    reason = compatibility.incompatibility_reason(plan)
    assert "1.19.2" in reason
    assert "pip install 'onnxruntime>=" in reason
    with pytest.raises(BackendError, match=r"1\.19\.2"):
        calotype.load(saved_plan, backend="onnxruntime")
    monkeypatch.setattr(compatibility, "installed", lambda _: "99.1.0")
    assert compatibility.incompatibility_reason(plan) is None
    result = calotype.load(saved_plan)("a red ring", steps=1, seed=0)
    assert any("99.1.0" in note for note in result.report.notes)


@pytest.mark.parametrize(("name", "here", "bad"), [("openvino", "2024.1.0", True), ("openvino", "2099.1.0", False)])
def test_openvino_plans_need_the_version_of_their_build(plan, monkeypatch, name, here, bad):
    monkeypatch.setattr(compatibility, "installed", lambda _: here)
    reason = reason_for(plan, backend=name, needs={name: "2026.4.1-1-abc"})
    assert (reason is not None) is bad


def test_compiled_engines_are_bound_to_the_exact_version_and_the_gpu(plan, monkeypatch):
    compiled = {"backend": "tensorrt", "needs": {"tensorrt": "11.4.0"}}
    monkeypatch.setattr(compatibility, "installed", lambda _: "11.5.0")
    monkeypatch.setattr(compatibility, "gpu_name", lambda: "NVIDIA H200, driver 595.1")
    assert "11.5.0" in reason_for(plan, **compiled)
    machine = {"gpu": "NVIDIA A100, driver 595.1"}
    assert "NVIDIA H200" in reason_for(plan, **compiled, machine=machine)
    monkeypatch.setattr(compatibility, "gpu_name", lambda: None)
    assert "no NVIDIA GPU" in reason_for(plan, **compiled, machine=machine)
    monkeypatch.setattr(compatibility, "installed", lambda _: "11.4.0")
    monkeypatch.setattr(compatibility, "gpu_name", lambda: "NVIDIA A100, driver 595.1")
    assert reason_for(plan, **compiled, machine=machine) is None


def test_nvidia_smi_is_read(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 595.45'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_name() == "NVIDIA H200, driver 595.45"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_name() is None
