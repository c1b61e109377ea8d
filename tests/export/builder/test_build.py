"""`calotype build`: the plan, builds that change nothing, and interrupted builds that leave nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import calotype
from calotype.errors import BuildError, CheckError, InputError
from calotype.export import BuildSpec, build
from calotype.export.builder.build import BUILDER
from calotype.export.commands.cli import app
from calotype.export.onnx.check import relative_error
from calotype.export.steps.subprocess_task import run_in_subprocess
from calotype.plan.plan import read_plan
from calotype.plan.profile import Range

MODULES = ("onnx.trace_step", "steps.stored_step", "builder.tuning", "builder.build")


@pytest.fixture
def children(monkeypatch) -> list[str]:
    """The tasks of child processes: "tracing the unet", ..."""
    done = []

    def spy(what, function, *on_progress, **arguments):
        done.append(what)
        return run_in_subprocess(what, function, *on_progress, **arguments)

    for module in MODULES:
        monkeypatch.setattr(f"calotype.export.{module}.run_in_subprocess", spy)
    return done


def run(*words, ok=True):
    result = CliRunner().invoke(app, ["build", *map(str, words)], catch_exceptions=True)
    if ok and result.exception:
        raise result.exception
    return result


def test_a_plan_records_its_build_and_its_evaluation(saved_plan):
    plan = read_plan(saved_plan)
    assert plan.backend == plan.build["backend"] == "onnxruntime"
    assert plan.build["spec"] == {"model": "demo"}
    assert plan.build["proof"]["psnr"] >= 50
    assert plan.build["tools"]["torch"]
    for component in plan.components.values():
        (artifact,) = component.artifacts
        assert artifact.precision == "fp32"
        assert artifact.check["max_relative_error"] <= 1e-4
        assert artifact.check["real_inputs"]["max_relative_error"] <= 1e-4
        assert artifact.check["real_inputs"]["calls"] >= 1


def test_inspect_prints_and_is_json(saved_plan):
    shown = CliRunner().invoke(app, ["inspect", str(saved_plan)]).output
    for words in (
        "unet/model.onnx",
        "profile      batch 1:1:32",
        "sample float32 [batch, 4,",
        "onnxruntime 1.",
        "dB",
    ):
        assert words in shown
    output = json.loads(CliRunner().invoke(app, ["inspect", str(saved_plan), "--json"]).output)
    assert set(output["components"]) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert output["components"]["unet"]["artifacts"][0]["bytes"] > 10_000_000
    assert output["build"]["machine"]["threads"] >= 1
    result = CliRunner().invoke(app, ["inspect", "/nowhere"])
    assert isinstance(result.exception, InputError)
    assert "calotype build" in str(result.exception)


def test_the_same_build_again_does_nothing(saved_plan, children):
    before = {p: p.stat().st_mtime_ns for p in saved_plan.rglob("*")}
    assert "nothing to do" in run("demo", "-o", saved_plan).stdout
    assert children == []
    assert before == {p: p.stat().st_mtime_ns for p in saved_plan.rglob("*")}


def test_another_size_traces_nothing_and_is_enforced(saved_plan, children, tmp_path):
    folder = tmp_path / "a small plän"
    run("demo", "--height", "64:96:128", "--width", "64:96:128", "--batch", "1:1:3", "-o", folder)
    assert not [what for what in children if what.startswith("tracing")]
    assert [what for what in children if what.startswith("checking")]
    pipe = calotype.load(folder)
    for sizes in ({"height": 144}, {"width": 48}):
        with pytest.raises(InputError, match="64:96:128"):
            pipe("a red ring", steps=1, **sizes)
    assert len(pipe("a red ring", steps=1, num_images=4).images) == 4  # in two batches
    reference, rng = calotype.load("demo", backend="eager"), np.random.default_rng(5)
    for _ in range(6):
        batch, tall, wide = int(rng.integers(1, 4)), int(rng.integers(4, 9)), int(rng.integers(4, 9))
        arguments = {"steps": 1, "seed": 1, "height": 16 * tall, "width": 16 * wide, "num_images": batch}
        got, expected = (p("a red ring", **arguments, output_type="np").images for p in (pipe, reference))
        assert got.shape == (batch, 16 * tall, 16 * wide, 3)
        assert relative_error(got, expected) <= 1e-3  # a full image, with guidance
        latents = rng.standard_normal((batch, 4, 2 * tall, 2 * wide), dtype=np.float32)
        states = rng.standard_normal((batch, 77, 128), dtype=np.float32)
        unet = {"sample": latents, "timestep": np.full(batch, 500, np.float32), "encoder_hidden_states": states}
        for name, inputs in (("unet", unet), ("vae_decoder", {"latent_sample": latents})):
            one, other = (p.component(name)(**inputs) for p in (pipe, reference))
            assert all(relative_error(one[key], other[key]) <= 1e-4 for key in other)


def test_one_changed_weight_rebuilds_only_what_depends_on_it(model_copy, saved_plan, children, tmp_path):
    weights = model_copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-8::2] = os.urandom(4)  # the low bytes of four fp16 numbers: no cached store has these weights
    weights.write_bytes(data)
    run(model_copy, "-o", tmp_path / "plan")
    assert [w for w in children if w.startswith(("tracing", "recording"))] == [
        *("tracing the vae_decoder", "tracing the vae_encoder"),
        *("recording the vae_decoder", "recording the vae_encoder"),
    ]


def test_another_builder_version_builds_a_plan_again(saved_plan, children, monkeypatch, tmp_path):
    folder = tmp_path / "plan"
    shutil.copytree(saved_plan, folder)
    assert "nothing to do" in run("demo", "-o", folder).stdout
    monkeypatch.setattr("calotype.export.builder.build.BUILDER", BUILDER + 1)
    run("demo", "-o", folder)
    assert not [w for w in children if w.startswith(("tracing", "recording", "compiling"))]
    assert [w for w in children if w.startswith("checking")]
    assert read_plan(folder).build["key"] != read_plan(saved_plan).build["key"]


def test_progress_for_machines(children, tmp_path):
    output = run("demo", "-o", tmp_path / "plan", "--json-progress").stdout
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines[-1]["event"] == "built"
    assert {"start", "found", "done"} >= {line["event"] for line in lines[:-1]}
    assert lines[-2]["done"] == lines[-2]["of"]


@pytest.mark.parametrize(
    ("words", "keyword"),
    [
        (["demo", "-o", "PLACE", "--backend", "tensorrt"], "NVIDIA"),
        (["demo", "-o", "PLACE", "--backend", "cuda"], "NVIDIA"),
        (["demo", "-o", "PLACE", "--engine", "level=5"], "--engine"),
        (["demo", "-o", "PLACE", "--engine", "speed=9"], "weight-streaming"),
        (["demo", "-o", "PLACE", "--precision", "bf16"], "bf16"),
        (["demo", "-o", "PLACE", "--height", "100"], "16"),
        (["demo", "-o", "PLACE", "--height", "16:512:4096"], "16:128:2048"),
        (["demo", "-o", "OCCUPIED"], "already exists"),
        (["demo", "-o", "OCCUPIED/notes.txt"], "already exists"),
        (["demo", "-o", "OCCUPIED/notes.txt/plan"], "created"),
        (["demo"], "output"),
        (["demo", "-o", "PLACE", "--max-loss", "clip-drop<=0.1", "--precision", "int8"], "CLIP model"),
        (["demo", "-o", "PLACE", "--scheduler", "eulr"], "eulr"),
    ],
)
def test_an_impossible_build_is_rejected_before_the_work(words, keyword, children, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    places = {"PLACE": str(tmp_path / "plan"), "OCCUPIED": str(occupied)}
    for name, place in places.items():
        words = [w.replace(name, place) for w in words]
    result = run(*words, ok=False)
    assert isinstance(result.exception, calotype.CalotypeError)
    assert keyword in str(result.exception)
    assert children == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["occupied"]
    assert (occupied / "notes.txt").read_text() == "mine"


def test_too_little_memory_is_reported_before_the_work(children, monkeypatch, tmp_path):
    monkeypatch.setattr("calotype.export.builder.preflight.available_bytes", lambda: 100 << 20)
    with pytest.raises(BuildError, match="100 MiB"):
        build(BuildSpec(model="demo", output=tmp_path / "plan"))
    assert children == []


def test_images_that_miss_the_bounds_leave_no_plan(monkeypatch, tmp_path):
    spec = BuildSpec(model="demo", output=tmp_path / "plan", precision="fp16", proof=1, proof_steps=1, calibration=1)
    monkeypatch.setattr("calotype.export.builder.tuning.PlanEvaluator.evaluate", lambda *_, **__: {"psnr": 29.0})
    with pytest.raises(CheckError, match="psnr is 29"):
        build(spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_build_leaves_no_plan(number, saved_plan, tmp_path):
    """A build that is stopped during a trace, in its own store, leaves no plan and no entry; SIGKILL leaves files."""
    home = tmp_path / "a home"
    command = [sys.executable, "-m", "calotype", "build", "demo", "-o", str(tmp_path / "plan")]
    work = subprocess.Popen(
        command,
        env={**os.environ, "CALOTYPE_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and what they start does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(home.glob("store/.making-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    work.send_signal(number)
    message = work.communicate(timeout=30)[1]
    assert work.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    left = [p for p in home.rglob("*") if p.is_file() and "digests" not in p.parts]
    if number == signal.SIGKILL:
        assert all(".making-" in str(p) or p.suffix == ".lock" for p in left)
    else:
        assert "stopped" in message
        assert left == []
    assert [p.name for p in tmp_path.iterdir()] == [home.name]


def test_an_old_plan_stays_until_the_new_one_is_complete(saved_plan, tmp_path, monkeypatch):
    folder = tmp_path / "plan"
    build(BuildSpec(model="demo", output=folder))
    first = read_plan(folder).build["key"]
    with monkeypatch.context() as broken:
        broken.setattr(
            "calotype.export.builder.build.write_plan", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            build(BuildSpec(model="demo", output=folder, batch=Range(min=1, opt=1, max=2)))
    assert read_plan(folder).build["key"] == first
    build(BuildSpec(model="demo", output=folder, batch=Range(min=1, opt=1, max=2)))
    assert read_plan(folder).build["key"] != first
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_a_toml_file_builds_the_same(saved_plan, tmp_path):
    config = tmp_path / "build.toml"
    config.write_text(f'model = "demo"\noutput = "{saved_plan}"\n')
    assert "nothing to do" in run("--config", config).stdout
    assert Path(saved_plan / "plan.json").exists()
