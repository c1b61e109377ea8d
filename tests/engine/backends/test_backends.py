"""Backend selection: every skipped backend has a reason."""

import importlib.util
import os
from dataclasses import replace

import pytest

import calotype
from calotype import backends
from calotype.backends import choose, open_component
from calotype.errors import BackendError
from calotype.system import threads
from tests.helpers.backends import change_backend


@pytest.fixture
def no_onnxruntime(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else real(n, *a))


def test_auto_takes_openvino_and_says_why(pipe):
    auto = calotype.load("demo")
    assert {o.runner.backend for o in map(auto.component, auto.plan.components)} == {"openvino"}
    assert auto.component("unet").why == "first of auto's list that runs"


def test_auto_skips_a_backend_whose_outputs_differ(pipe):
    auto = calotype.load("demo")
    unet = auto.plan.components["unet"]
    (artifact,) = (a for a in unet.artifacts if a.form == "onnx")
    assert artifact.check["others"]["openvino"]["max_relative_error"] < 1e-4
    check = {**artifact.check, "others": {"openvino": {"refused": "it differs from eager float32 by 1.0e-01"}}}
    inexact = replace(unet, artifacts=(replace(artifact, check=check),))
    opened = open_component(inexact, choose("auto"))
    assert opened.runner.backend == "onnxruntime"
    assert "not openvino: it differs from eager float32" in opened.why
    assert open_component(inexact, choose("openvino")).runner.backend == "openvino"  # an explicit request wins


def test_auto_falls_back_and_gives_reasons(no_onnxruntime, monkeypatch):
    change_backend(monkeypatch, "openvino", unavailable=lambda: "openvino is not installed")
    opened = calotype.load("demo").component("unet")
    assert opened.runner.backend == "eager"
    assert "not openvino: openvino is not installed; not onnxruntime: onnxruntime is not installed" in opened.why


def test_a_requested_backend_raises(no_onnxruntime):
    with pytest.raises(BackendError, match="pip install") as raised:
        calotype.load("demo", backend="onnxruntime")
    assert raised.value.backend == "onnxruntime"


def test_an_explicit_list_is_tried_in_order(no_onnxruntime):
    opened = calotype.load("demo", backend=["onnxruntime", "eager"]).component("unet")
    assert opened.why.startswith("requested; not onnxruntime")


@pytest.mark.parametrize("name", ["tensorflow", "", "Eager"])
def test_unknown_backends_are_refused_with_the_known_ones(name):
    with pytest.raises(BackendError, match="onnxruntime"):
        calotype.load("demo", backend=name)


def test_an_empty_list_is_refused():
    with pytest.raises(BackendError, match="empty"):
        backends.choose([])


def test_a_refused_artifact_is_skipped_with_its_reason(pipe):
    from dataclasses import replace

    unet = pipe.plan.components["unet"]
    bare = replace(unet, artifacts=unet.artifacts[1:], refused={"onnx": "it differs from eager by 1e-2"})
    opened = backends.open_component(bare, backends.choose("auto"))
    assert opened.runner.backend == "eager"
    assert "it differs from eager by 1e-2" in opened.why
    with pytest.raises(BackendError, match="it differs from eager"):
        backends.open_component(bare, backends.choose("onnxruntime"))


@pytest.mark.parametrize(
    ("quota", "allowed"), [("max 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("junk", 3)]
)
def test_threads_follow_affinity_and_quota(tmp_path, monkeypatch, quota, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    (tmp_path / "cpu.max").write_text(quota)
    assert threads.available(tmp_path) == allowed


def test_threads_follow_a_quota_of_version_1(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert threads.available(tmp_path) == 4
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert threads.available(tmp_path) == 8
