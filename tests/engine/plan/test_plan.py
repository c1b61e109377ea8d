"""A plan is opened whole and unchanged, or refused in one sentence with the command that mends it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import calotype
from calotype.backends import compatibility as trust
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
    told = str(refused.value)
    assert "\n" not in told
    assert "calotype build" in told
    return told


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data, before = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk would


def test_every_file_truncated_flipped_or_gone_is_noticed(copy, saved_plan):
    names = files(saved_plan)
    assert {"plan.json", "unet/model.onnx", "unet/model.onnx.data", "tokenizer/vocab.json"} < set(names)
    for name in names:
        for damage in (truncate, flip, Path.unlink):
            damage(copy / name)
            if name == "plan.json" and damage is Path.unlink:
                with pytest.raises(SourceError):  # a folder without a manifest is no plan
                    calotype.load(copy)
            elif not (name == "plan.json" and damage is truncate):  # its last byte says nothing
                told = refusal(copy)
                assert name.split("/")[-1] in told or "plan in" in told
            shutil.copy2(saved_plan / name, copy / name)
    calotype.load(copy)


def test_artifacts_that_changed_places_are_noticed(copy):
    one, two = copy / "vae_decoder" / "model.onnx", copy / "vae_encoder" / "model.onnx"
    other = copy / "other"
    one.rename(other)
    two.rename(one)
    other.rename(two)
    assert "model.onnx" in refusal(copy)


def test_a_manifest_that_was_edited_is_noticed(copy):
    manifest = copy / "plan.json"
    data = json.loads(manifest.read_text())
    data["scaling_factor"] *= 2
    manifest.write_text(json.dumps(data))
    assert "was changed" in refusal(copy)
    manifest.write_text("{}")
    assert "calotype build" in refusal(copy)
    data["version"] = 1
    manifest.write_text(json.dumps(data))
    assert "version 1," in refusal(copy)


def test_a_plan_makes_the_same_picture_as_its_model(saved_plan, pipe, monkeypatch):
    monkeypatch.setattr("calotype.export.prepare", lambda *_, **__: pytest.fail("a plan needs no exporter"))
    import numpy as np

    settings = {"steps": 4, "seed": 3, "output_type": "latent"}
    opened = calotype.load(saved_plan)
    np.testing.assert_array_equal(opened("a red ring", **settings).images, pipe("a red ring", **settings).images)


@pytest.fixture
def plan(saved_plan):
    return read_plan(saved_plan)


def told_of(plan, **build):
    return trust.incompatibility_reason(replace(plan, build={**plan.build, **build}))


def test_an_older_runtime_is_refused_and_a_newer_one_noted(plan, saved_plan, monkeypatch):
    assert trust.incompatibility_reason(plan) is None
    assert trust.version_drift_note(plan) is None
    monkeypatch.setattr(trust, "_installed", lambda _: "1.19.2")
    told = trust.incompatibility_reason(plan)
    assert "was built and proved with onnxruntime" in told
    assert "here is 1.19.2" in told
    assert "pip install 'onnxruntime>=" in told
    with pytest.raises(BackendError, match=r"here is 1\.19\.2"):
        calotype.load(saved_plan, backend="onnxruntime")
    monkeypatch.setattr(trust, "_installed", lambda _: "99.1.0")
    assert trust.incompatibility_reason(plan) is None
    result = calotype.load(saved_plan)("a red ring", steps=1, seed=0)
    assert any("here is 99.1.0" in note for note in result.report.notes)


@pytest.mark.parametrize(("name", "here", "bad"), [("openvino", "2024.1.0", True), ("openvino", "2099.1.0", False)])
def test_openvino_plans_are_held_to_its_version(plan, monkeypatch, name, here, bad):
    monkeypatch.setattr(trust, "_installed", lambda _: here)
    told = told_of(plan, backend=name, needs={name: "2026.4.1-1-abc"})
    assert (told is not None) is bad


def test_compiled_engines_are_bound_to_the_exact_version_and_the_gpu(plan, monkeypatch):
    compiled = {"backend": "tensorrt", "needs": {"tensorrt": "11.4.0"}}
    monkeypatch.setattr(trust, "_installed", lambda _: "11.5.0")
    monkeypatch.setattr(trust, "gpu_name", lambda: "NVIDIA H200, driver 595.1")
    assert "compiled by tensorrt 11.4.0, and here is 11.5.0; build it again here: calotype build" in told_of(
        plan, **compiled
    )
    machine = {"gpu": "NVIDIA A100, driver 595.1"}
    assert "was built for NVIDIA A100, driver 595.1, and here is NVIDIA H200" in told_of(
        plan, **compiled, machine=machine
    )
    monkeypatch.setattr(trust, "gpu_name", lambda: None)
    assert "here is no NVIDIA GPU" in told_of(plan, **compiled, machine=machine)
    monkeypatch.setattr(trust, "_installed", lambda _: "11.4.0")
    monkeypatch.setattr(trust, "gpu_name", lambda: "NVIDIA A100, driver 595.1")
    assert told_of(plan, **compiled, machine=machine) is None


def test_nvidia_smi_is_read(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 595.45'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_name() == "NVIDIA H200, driver 595.45"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_name() is None
