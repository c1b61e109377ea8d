"""`calotype build --engine` on a stand-in: every option reaches the library, and a build reports its progress."""

import pickle

import numpy as np
import pytest

from calotype.errors import BuildError, InputError
from calotype.export import build
from calotype.export.builder.build import check_backend
from calotype.export.commands.cli import app
from calotype.export.store import store
from calotype.export.tensorrt.options import EngineOptions
from calotype.export.tensorrt.plugin import PLUGIN
from calotype.files import locks
from calotype.loading import load
from calotype.plan.plan import read_plan
from tests.helpers.small_builds import levels, small_spec

PROMPT = "a large red circle on a blue background"
SMALL = {"seed": 3, "steps": 2, "width": 64, "height": 64}
QUICK = {"height": "64:64:128", "width": "64:64:128", "batch": "1:1:2", "proof": "1", "proof-steps": "2", "steps": "2"}


def command(folder, *words) -> list[str]:
    options = [("backend", "tensorrt"), *QUICK.items(), *(("engine", word) for word in words)]
    return ["build", "demo", "-o", str(folder), *(part for name, value in options for part in (f"--{name}", value))]


def build_with(folder, *words) -> dict:
    """Build on the command line; return each component's engine: graph, profiles and flags."""
    app(command(folder, *words), standalone_mode=False)
    components = read_plan(folder).components
    return {n: pickle.loads(c.artifacts[0].path.read_bytes()) for n, c in components.items()}


def test_every_option_is_parsed():
    words = ("refit", "exact", "weight-streaming", "version-compatible", "hardware=ampere-plus", "level=3")
    options = EngineOptions.from_words([*words, "workspace-bytes=4096", "targets=86,89", "chunks=2"])
    assert options == EngineOptions(
        refit=True,
        exact=True,
        weight_streaming=True,
        version_compatible=True,
        hardware="ampere-plus",
        level=3,
        workspace_bytes=4096,
        targets=(86, 89),
        chunks=2,
    )
    assert EngineOptions.from_words(["plugin"]).plugin
    for option, keyword in (
        ("refit=all", "plugin"),
        ("level", "option"),
        ("targets=x", "targets"),
        ("level=x", "level"),
    ):
        with pytest.raises(InputError, match=keyword):
            EngineOptions.from_words([option])


def test_unsupported_options_are_refused_before_any_work(on_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.backends.unavailable", lambda name: None)
    for backend, word in (("tensorrt", "targets=89"), ("tensorrt-rtx", "plugin"), ("onnxruntime", "refit")):
        with pytest.raises(BuildError, match=rf"--engine .*{backend}"):
            check_backend(small_spec(backend, tmp_path / "plan", engine=(word,)))


def test_options_of_the_command_line_reach_the_library(on_a_gpu, pipes, tmp_path):
    words = ("exact", "weight-streaming", "version-compatible", "hardware=ampere-plus", "level=3", "chunks=2")
    engines = build_with(tmp_path / "plan", *words, "workspace-bytes=4096")
    for name, (_, profiles, flags) in engines.items():
        assert set(flags) == {
            *("VERSION_COMPATIBLE", "WEIGHT_STREAMING", "WORKSPACE 4096"),
            *("hardware_compatibility_level AMPERE_PLUS", "builder_optimization_level 3"),
        }, name
        exact, wide = profiles
        assert all(exact[n] == (ends[1],) * 3 for n, ends in wide.items())
    assert engines["vae_decoder"][1][0]["latent_sample"] == ((1, 4, 8, 8),) * 3
    plan = read_plan(tmp_path / "plan")
    assert plan.build["machine"]["gpu"] is None  # other GPUs can run it
    pipe = load(tmp_path / "plan")
    for size in (64, 128, 64):  # the optimum, another size, and back
        options = {**SMALL, "width": size, "height": size}
        assert levels(pipe(PROMPT, **options), pipes["eager"](PROMPT, **options)) <= 1
        assert pipe.component("vae_decoder").runner._profile == (size != 64)


def test_our_kernel_goes_into_engines_with_the_plugin_option(on_a_gpu, pipes, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.export.tensorrt.engines.ENGINES", str(tmp_path))  # no engines of earlier runs
    assert b"group_norm_silu" not in build_with(tmp_path / "without")["vae_decoder"][0]
    engines = build_with(tmp_path / "plan", "plugin")
    assert {n for n, (graph, _, _) in engines.items() if b"calotype" in graph and b"group_norm_silu" in graph} == {
        *("unet", "vae_decoder", "vae_encoder")
    }
    assert {what for what, plugin in on_a_gpu.registered if plugin == PLUGIN} == {"register", "autotune", "aot_impl"}
    assert levels(load(tmp_path / "plan")(PROMPT, **SMALL), pipes["eager"](PROMPT, **SMALL)) <= 1


def test_a_build_reports_progress_and_an_interrupt_leaves_nothing(on_a_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("calotype.export.steps.progress._STEP_S", 0.0)
    monkeypatch.setattr("calotype.export.steps.progress._LINE_S", 0.0)
    monkeypatch.setattr("calotype.export.tensorrt.engines.ENGINES", str(tmp_path))  # no engines of earlier runs
    build_with(tmp_path / "plan")
    output = capsys.readouterr().err
    for name in read_plan(tmp_path / "plan").components:
        assert f"engine {name}: Building, 1 of 2" in output
    monkeypatch.setattr("calotype.export.steps.progress.Progress.step", interrupt)
    before = engines()
    with pytest.raises(SystemExit) as ended:
        app(command(tmp_path / "other", "level=1"))
    assert ended.value.code == 130
    assert "stopped" in capsys.readouterr().err
    assert engines() == before
    assert not abandoned()
    assert not (tmp_path / "other").exists()


def engines():
    """The engines in the store, which other tests use at the same time."""
    return {entry.key for entry in store.STORE.entries() if "tensorrt" in entry.title}


def abandoned():
    """Unfinished entries that no process is making."""
    left = []
    for path in store.STORE.root.glob(".making-*"):
        with locks.exclusive(store.STORE.root / f"{path.name.removeprefix('.making-')}.lock") as free:
            left += [path] if free and path.exists() else []
    return left


def interrupt(progress, text):
    raise KeyboardInterrupt("SIGINT")


def test_profiles_are_one_range_or_the_optimum_before_it():
    from calotype.export.tensorrt.engines import profiles_of

    shapes = {"x": [[1, 4], [2, 4], [8, 4]]}
    assert profiles_of(shapes, exact=False) == [{"x": ((1, 4), (2, 4), (8, 4))}]
    assert profiles_of(shapes, exact=True)[0] == {"x": ((2, 4), (2, 4), (2, 4))}
    assert np.array(profiles_of(shapes, exact=True)[1]["x"]).tolist() == shapes["x"]


def test_a_build_with_the_same_options_is_reused(on_a_gpu, tmp_path):
    first = build(small_spec("tensorrt", tmp_path / "plan", engine=("exact",)))
    assert first.fresh
    assert not build(small_spec("tensorrt", tmp_path / "plan", engine=("exact",))).fresh
    assert build(small_spec("tensorrt", tmp_path / "plan")).fresh
