"""Preparing plans: components are traced once, checked, and traced again if damaged."""

import importlib
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import calotype
from calotype.errors import CheckError, SourceError
from calotype.export import prepare
from calotype.export.onnx.check import relative_error
from calotype.export.steps.subprocess_task import Outcome
from calotype.export.store.store import fetch, key_of
from calotype.plan.family import family_of


@pytest.fixture(scope="module")
def plan(pipe):
    return prepare("demo")


def test_every_component_is_traced_and_checked(plan):
    assert set(plan.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for component in plan.components.values():
        check = component.artifact("onnx").check
        assert check["max_relative_error"] <= 1e-4
        assert len(check["sizes"]) == 2


def test_exports_have_the_bindings_names_and_dynamic_axes(plan):
    for component in plan.components.values():
        path = component.artifact("onnx").path
        model = onnx.load(path, load_external_data=False)
        assert [o.version for o in model.opset_import if o.domain == ""] == [21]
        assert [i.name for i in model.graph.input] == [b.name for b in component.inputs]
        assert [o.name for o in model.graph.output] == [b.name for b in component.outputs]
        for value, binding in zip(model.graph.input, component.inputs, strict=True):
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            # One timestep may apply to all images, so its dimension is not named after the batch.
            assert dims == (["timesteps"] if binding.name == "timestep" else list(binding.dims))
        assert (path.parent / "model.onnx.data").stat().st_size > path.stat().st_size


def test_one_export_serves_sizes_it_was_not_traced_at(plan, pipes):
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 2, 2), (5, 16, 4), (2, 10, 22)):
        inputs = {
            "sample": rng.standard_normal((batch, 4, height, width), dtype=np.float32),
            "timestep": rng.uniform(0, 999, batch).astype(np.float32),  # a different step for each image
            "encoder_hidden_states": rng.standard_normal((batch, 77, 128), dtype=np.float32),
        }
        got, expected = (pipes[b].component("unet")(**inputs)["out_sample"] for b in ("onnxruntime", "eager"))
        assert relative_error(got, expected) <= 1e-4


def test_one_timestep_for_all_images_works_too(plan):
    session = onnxruntime.InferenceSession(plan.components["unet"].artifact("onnx").path)
    x, states = np.ones((2, 4, 8, 8), np.float32), np.ones((2, 77, 128), np.float32)
    one, two = (
        session.run(None, {"sample": x, "timestep": np.full(n, 500, np.float32), "encoder_hidden_states": states})[0]
        for n in (1, 2)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_second_use_traces_nothing(plan, monkeypatch):
    monkeypatch.setattr("calotype.export.onnx.trace_step._trace_and_check", lambda *_: pytest.fail("traced again"))
    assert prepare("demo") == plan


def test_a_damaged_artifact_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    calls = []

    def make(folder: Path):
        calls.append(folder)
        (folder / "model.onnx").write_bytes(b"0123456789")
        return {"figure": 1}

    key = key_of({"a": 1})
    folder, notes = fetch(key, make)
    assert (notes, fetch(key, make), len(calls)) == ({"figure": 1}, (folder, notes), 1)
    for damage in (b"01234", b"0123456780", b""):  # truncated, a bit flipped, emptied
        (folder / "model.onnx").write_bytes(damage)
        assert fetch(key, make)[0] == folder
        assert (folder / "model.onnx").read_bytes() == b"0123456789"
    (folder / "entry.json").write_text("{")
    fetch(key, make)
    assert len(calls) == 5


def test_a_failed_make_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))

    def fail(folder: Path):
        (folder / "half").write_bytes(b"x")
        raise CheckError("no")

    with pytest.raises(CheckError):
        fetch("k", fail)
    assert list((tmp_path / "store").iterdir()) == []


def test_files_of_a_killed_process_are_removed_and_others_may_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    (tmp_path / "store" / ".making-k").mkdir(parents=True)
    (tmp_path / "store" / ".making-k" / "half").write_bytes(b"x")
    folder, _ = fetch("k", lambda f: (f / "x").write_bytes(b"x") and {})
    assert sorted(p.name for p in folder.iterdir()) == ["entry.json", "x"]
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in (folder, *folder.iterdir()))  # not only the owner
    assert not list((tmp_path / "store").glob(".making*"))


def here(what, function, **arguments) -> Outcome:
    """Run the task of a child process in this process."""
    module, name = function.split(":")
    return Outcome(value=getattr(importlib.import_module(module), name)(**arguments), peak_bytes=0)


def test_auto_falls_back_to_eager_if_a_model_cannot_be_traced(model_copy, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("calotype.export.onnx.trace_step.run_in_subprocess", here)
    monkeypatch.setattr("calotype.export.onnx.trace._graph", fail)
    monkeypatch.setattr("calotype.export.onnx.known_graphs.FOLDER", tmp_path)  # whose graphs need no trace
    opened = calotype.load(model_copy).component("unet")
    assert opened.runner.backend == "eager"
    assert "no such operator" in opened.why


def test_concurrent_callers_make_an_entry_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path))
    calls, barrier = [], threading.Barrier(4)

    def make(folder: Path):
        calls.append(folder)
        (folder / "x").write_bytes(b"x")
        return {}

    def work():
        barrier.wait()
        fetch("k", make)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(calls) == 1


def test_a_home_that_is_a_file_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="CALOTYPE_HOME"):
        fetch("k", lambda _: {})


def test_an_artifact_with_a_large_error_is_refused(model_copy, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.export.onnx.check.TOLERANCE", 0.0)
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("calotype.export.builder.prepare.family_of", only_text_encoder)
    component = prepare(model_copy).components["text_encoder"]
    assert component.artifact("onnx") is None
    assert "float32" in component.refused["onnx"]


def only_text_encoder(configs):
    family = family_of(configs)
    return replace(family, components={"text_encoder": family.components["text_encoder"]})


def test_changed_weights_change_the_digest(model_copy, plan):
    from calotype.export.sources.source import read_source

    before = read_source(model_copy)
    path = model_copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    after = read_source(model_copy)
    assert before.fingerprint == plan.fingerprint != after.fingerprint
    assert before.digests["unet"] == after.digests["unet"]
    assert before.digests["vae"] != after.digests["vae"]


def test_a_model_in_the_hubs_cache_opens_by_its_id(demo_folder, tmp_path, monkeypatch, plan):
    snapshot = tmp_path / "models--us--demo" / "snapshots" / ("0" * 40)
    shutil.copytree(demo_folder, snapshot)
    (tmp_path / "models--us--demo" / "refs").mkdir()
    (tmp_path / "models--us--demo" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert prepare("us/demo").fingerprint == plan.fingerprint
