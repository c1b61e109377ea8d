"""Traces and int8 builds of `load` serve accelerated pipelines with the same weights, and the other way round."""

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.errors import CheckError
from calotype.export.builder import built
from calotype.export.builder.built import keep_built
from calotype.export.builder.prepare import prepare_lazily
from calotype.export.onnx import trace_step as tracing
from calotype.export.onnx.divide import without_layer
from calotype.export.store.store import key_of
from tests.helpers.pipelines.accelerated import MIN_DB, against_eager, reasons

USED = ("text_encoder", "unet", "vae_decoder")
SMALL = {"num_inference_steps": 2, "height": 64, "width": 64}


@pytest.fixture
def traced(monkeypatch):
    """The demonstration model after `load` has traced it. A second trace fails."""
    lazy = prepare_lazily("demo")
    components = {name: lazy.float32(name) for name in USED}
    monkeypatch.setattr(tracing, "_trace_and_check", lambda *_: pytest.fail("traced again"))
    return lazy, components


def opened(demo_folder, tmp_path, dtype=torch.float32):
    """Return the demonstration model as a pipeline, from a copy in another type."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(demo_folder, dtype=dtype)
    pipe.save_pretrained(tmp_path / "copy")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_that_load_has_traced_is_not_traced_again(traced, demo_folder, tmp_path, dtype):
    pipe = calotype.accelerate(opened(demo_folder, tmp_path, dtype), backend="onnxruntime", verify=False)
    assert against_eager(pipe, **SMALL) > MIN_DB
    assert not reasons(calotype.accelerate_report(pipe))


def test_an_int8_build_of_the_same_weights_is_opened(traced, demo_folder, tmp_path, monkeypatch):
    own = {"test": str(tmp_path)}  # other tests build in int8
    monkeypatch.setattr(built, "key_of", lambda parts: key_of({**parts, **own}))
    lazy, components = traced
    for name in USED:  # the float32 files stand for a build in int8
        kept = components[name].artifact("onnx")
        artifact = type(kept)(form="onnx", path=kept.path, precision="int8", check={})
        keep_built(lazy.family.components[name], lazy.source, "onnxruntime", components[name].with_artifacts(artifact))
    pipe = calotype.accelerate(opened(demo_folder, tmp_path), backend="onnxruntime", precision="int8", verify=False)
    assert against_eager(pipe, **SMALL) > MIN_DB
    report = calotype.accelerate_report(pipe)
    assert {report[name].precision for name in ("text_encoder", "unet", "vae.decoder")} == {"int8"}


def test_a_graph_without_the_layer_is_an_error(traced):
    graph = traced[1]["vae_decoder"].artifact("onnx")
    with pytest.raises(CheckError, match="conv_norm"):
        without_layer(graph, "decoder.conv_norm", {})
    assert np.isfinite(graph.check["max_relative_error"])
