"""The builder with a fake TensorRT: what it sets, and how it reports failures."""

from types import SimpleNamespace

import pytest
import torch

from calotype.errors import BuildError, Cancelled, InputError
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.plan.bindings import Binding
from calotype.plan.profile import Profile, Range

SHAPES = {"x": ((1, 4), (2, 4), (8, 4))}


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    return tmp_path / "model.onnx"


@pytest.fixture
def trt(fake, monkeypatch):
    """A library with a GPU that reads any graph, whose one input is x, and builds it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fake.answers |= {
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.get_input": lambda i: SimpleNamespace(name="x"),
        "IBuilderConfig.add_optimization_profile": lambda profile: 0,
        "IBuilderConfig.get_timing_cache": lambda: SimpleNamespace(serialize=lambda: b"timings"),
        "Builder.build_serialized_network": lambda network, config: b"engine",
    }
    return fake


def test_a_build_is_strongly_typed_and_for_its_profiles(trt, graph):
    wide = {"x": ((1, 4), (8, 4), (32, 4))}
    built = build_engine(trt, graph, [SHAPES, wide])
    assert (built.engine, built.timing_cache) == (b"engine", b"timings")
    assert trt.called("Builder.create_network") == [(0,)]
    assert trt.called("IOptimizationProfile.set_shape") == [("x", *SHAPES["x"]), ("x", *wide["x"])]
    assert len(trt.called("IBuilderConfig.add_optimization_profile")) == 2
    assert trt.called("IBuilderConfig.max_aux_streams =") == [(0,)]  # everything on the one stream that is captured
    assert trt.called("IBuilderConfig.set_flag") == []
    assert trt.called("IBuilderConfig.clear_flag") == [("BuilderFlag.TF32",)]  # float32 must not round to TF32


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"refit": True}, ("IBuilderConfig.set_flag", "BuilderFlag.REFIT")),
        ({"weight_streaming": True}, ("IBuilderConfig.set_flag", "BuilderFlag.WEIGHT_STREAMING")),
        ({"version_compatible": True}, ("IBuilderConfig.set_flag", "BuilderFlag.VERSION_COMPATIBLE")),
        (
            {"hardware": "ampere-plus"},
            ("IBuilderConfig.hardware_compatibility_level =", "HardwareCompatibilityLevel.AMPERE_PLUS"),
        ),
        ({"level": 3}, ("IBuilderConfig.builder_optimization_level =", 3)),
        ({"workspace_bytes": 9}, ("IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE", 9)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_become_the_librarys_settings(options, call, trt, graph):
    build_engine(trt, graph, [SHAPES], EngineOptions(**options))
    assert call in trt.calls


def test_unknown_options_are_refused():
    for wrong in ({"hardware": "all"}, {"level": 6}, {"chunks": 0}, {"refit": True, "plugin": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            EngineOptions(**wrong)


def test_only_a_matching_timing_cache_is_used(trt, graph):
    build_engine(trt, graph, [SHAPES], timing_cache=b"before")
    assert trt.called("IBuilderConfig.create_timing_cache") == [(b"before",)]
    accepted = iter([False, True])
    trt.answers["IBuilderConfig.set_timing_cache"] = lambda cache, ignore: next(accepted)
    assert build_engine(trt, graph, [SHAPES], timing_cache=b"of another GPU").timing_cache == b"timings"
    assert trt.called("IBuilderConfig.create_timing_cache")[1:] == [(b"of another GPU",), (b"",)]
    assert all(not ignore for _, ignore in trt.called("IBuilderConfig.set_timing_cache"))


def test_without_a_gpu_no_object_of_the_library_is_created(trt, graph, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BuildError, match="GPU"):
        build_engine(trt, graph, [SHAPES])
    with pytest.raises(BuildError, match="targets"):
        build_engine(trt, graph, [SHAPES], EngineOptions(targets=(89,)))
    assert trt.calls == []


def test_a_failed_build_reports_the_log(trt, graph):
    def fail(network, config):
        trt.log_error("[autotuner.cpp] no implementation for node conv_in\nmore")

    trt.answers["Builder.build_serialized_network"] = fail
    with pytest.raises(BuildError, match="conv_in"):
        build_engine(trt, graph, [SHAPES])


def test_a_failed_build_reports_the_exception(trt, graph):
    def fail(*args):
        raise TypeError("incompatible function arguments\n  1. ...")

    trt.answers["Builder.build_serialized_network"] = fail
    with pytest.raises(BuildError, match="arguments"):
        build_engine(trt, graph, [SHAPES])


def test_an_unreadable_graph_is_reported_with_its_nodes(trt, graph):
    def error(i):
        attributes = {"node_name": f"node_{i}", "node_operator": "Conv", "desc": "unsupported type"}
        return SimpleNamespace(**{n: (lambda v=v: v) for n, v in attributes.items()})

    trt.answers |= {
        "OnnxParser.parse_from_file": lambda path: False,
        "OnnxParser.num_errors": 2,
        "OnnxParser.get_error": error,
    }
    with pytest.raises(BuildError, match="node_1"):
        build_engine(trt, graph, [SHAPES])


def test_a_refused_profile_is_reported_with_its_sizes(trt, graph):
    trt.answers["IBuilderConfig.add_optimization_profile"] = lambda profile: -1
    with pytest.raises(BuildError, match=r"\[1, 4\]:\[2, 4\]:\[8, 4\]"):
        build_engine(trt, graph, [SHAPES])


def test_progress_is_reported_and_can_cancel_the_build(trt, graph):
    def build(network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Timing", "Building", 3)
        continues = monitor.step_complete("Timing", 0) and monitor.step_complete("Timing", 1)
        monitor.phase_finish("Timing")
        monitor.phase_finish("Building")
        return b"engine" if continues else None

    trt.answers["Builder.build_serialized_network"] = build
    steps = []
    build_engine(trt, graph, [SHAPES], watch=lambda p: steps.append(p) or True)
    assert [(p.name, p.inside, p.done, p.of) for p in steps] == [
        ("Building", None, 0, 2),
        ("Timing", "Building", 0, 3),
        ("Timing", "Building", 1, 3),
        ("Timing", "Building", 2, 3),
    ]
    with pytest.raises(Cancelled, match="cancelled"):
        build_engine(trt, graph, [SHAPES], watch=lambda p: p.done < 1)
    with pytest.raises(ZeroDivisionError):
        build_engine(trt, graph, [SHAPES], watch=lambda p: 1 / 0)


def test_shapes_are_those_of_the_bindings_over_the_profile():
    profile = Profile(
        batch=Range(min=1, opt=2, max=4),
        height=Range(min=64, opt=512, max=1024),
        width=Range(min=128, opt=512, max=768),
        multiple=64,
    )
    sample = Binding(name="sample", dtype="float32", dims=("batch", 4, "latent_height", "latent_width"))
    timestep = Binding(name="timestep", dtype="float32", dims=("batch",))
    assert shapes_of("unet", [sample, timestep], profile) == {
        "sample": ((1, 4, 8, 16), (4, 4, 64, 64), (8, 4, 128, 96)),  # both halves with guidance; one image without
        "timestep": ((1,), (4,), (8,)),
    }
    states = Binding(name="encoder_hidden_states", dtype="float32", dims=("batch", "tokens", 768))
    ids = Binding(name="input_ids", dtype="int64", dims=("batch", 77))
    assert shapes_of("unet", [states], profile, chunks=3)["encoder_hidden_states"] == (
        (1, 77, 768),
        (4, 77, 768),
        (8, 3 * 77, 768),
    )
    assert shapes_of("text_encoder", [ids], profile, chunks=3)["input_ids"] == ((1, 77), (4, 77), (24, 77))
    assert shapes_of("vae_decoder", [sample], profile)["sample"][1:] == ((2, 4, 64, 64), (4, 4, 128, 96))
