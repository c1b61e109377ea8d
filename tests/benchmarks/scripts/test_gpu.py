"""The GPU's benchmarks as far as a CPU goes: targets on runs that are written by hand, the commands on what is here."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calotype.benchmarks.measure.record import Row, Speed
from calotype.benchmarks.report import targets
from calotype.benchmarks.run import start_contender as entry
from calotype.benchmarks.scripts import gpu_close, gpu_questions
from calotype.benchmarks.suite.contenders import contender
from calotype.benchmarks.suite.presets import PRESETS
from calotype.errors import InputError

SD15, _, SDXL, *_ = targets.TARGETS


def row(at: str, contender: str, seconds: float | None, *, batch: int = 1, steps: int = 20, reason: str = "") -> Row:
    maker, *rest = contender.split(":")
    speed = None
    if seconds is not None:
        told = {"p10_s": seconds, "p90_s": seconds, "samples_s": (seconds,), "it_per_s": None}
        speed = Speed(median_s=seconds, images_per_s=batch / seconds, **told)
    return Row(
        case={"steps": steps, "batch": batch},
        case_id=at,
        contender=contender,
        maker=maker,
        backend=rest[0],
        precision=rest[-1],
        status="cannot" if speed is None else "ok",
        reason=reason,
        speed=speed,
    )


def test_every_target_is_of_a_case_of_the_preset_with_who_can_meet_it():
    cases = {case.id: case for case in PRESETS["gpu"]}
    for target in targets.TARGETS:
        runs = {c.precision.partition("+")[0] for c in cases[target.at].contenders if c.is_ours}
        assert runs & {p.partition("+")[0] for p in target.precisions}, target
    names = [{c.name for c in cases[t.at].contenders} for t in targets.TARGETS]
    assert all({"diffusers:fp16", "torch-compile:fp16"} <= found for found in names)


def test_the_best_right_row_is_held_to_the_target():
    rows = [
        row(SD15.at, "calotype:cuda:fp16", 0.075),  # 267 calls a second
        row(SD15.at, "calotype:tensorrt:fp16", 0.1),
        row(SD15.at, "torch-compile:fp16", 0.09),
        row(SDXL.at, "calotype:cuda:fp16", 0.9, steps=30),
        row(SDXL.at, "calotype:tensorrt:fp8", None, reason="tensorrt is not installed"),
    ]
    first, second, third, fourth, *others = targets.told(rows)
    assert first == f"met        {SD15.words()}; calotype:cuda:fp16 has 267"
    assert second.startswith("missed")
    assert second.endswith("calotype:cuda:fp16 has 1.2")
    assert third.startswith("missed")
    assert fourth.startswith("no figure")
    assert fourth.endswith("(calotype:tensorrt:fp8: tensorrt is not installed)")
    assert all(line.startswith("no figure") for line in others)


def test_a_peers_row_alone_is_no_figure_of_ours():
    lines = list(targets.told([row(SD15.at, "diffusers:fp16", 0.01)]))
    assert all(line.startswith("no figure") for line in lines)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.words())
def test_a_bound_is_met_from_its_own_side(target):
    bound = target.least or target.most
    better, worse = (1.1, 0.9) if target.least else (0.9, 1.1)
    assert target.met(bound * better)
    assert not target.met(bound * worse)
    assert replace(target, figure="x").words().endswith(target.unit)


def test_a_picture_is_taken_apart_by_the_clock_that_is_given(fake):
    ticks = iter([5.0, 1.0, 3.0, 7.0, 9.0, 8.0, 2.0, 2.0, 4.0])  # three rounds of each network
    asked = {"prompt": "x", "steps": 2, "height": 128, "width": 128, "guidance_scale": 5.0, "num_images": 1}
    found = gpu_close.close(fake, clock=lambda run: run() and next(ticks), rounds=3, request=asked)
    assert found["networks_s"] == {"text_encoder": 3.0, "unet": 8.0, "vae_decoder": 2.0}
    assert found["besides_networks_s"] == pytest.approx(found["picture_s"] - 3 - 2 * 8 - 2)


def test_the_gpus_time_is_told_from_its_activities():
    """Two that overlap, one inside another, a pause of 4 and one of 6 microseconds."""
    spans = [(10.0, 20.0), (15.0, 26.0), (16.0, 18.0), (30.0, 40.0), (46.0, 50.0)]
    assert gpu_close.busy_and_gaps(spans) == (30.0, [4.0, 6.0])
    assert gpu_close.host_share(spans) == {"busy_share": 0.75, "activities": 5, "median_gap_us": 5.0}
    assert gpu_close.host_share([]) == {}


def test_a_picture_is_taken_apart_on_a_cpu(saved_plan, capsys):
    said = ["--model", str(saved_plan), "--backend", "onnxruntime", "--device", "cpu"]
    assert gpu_close.main([*said, "--steps", "2", "--size", "64", "--rounds", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["networks_s"]) == {"text_encoder", "unet", "vae_decoder"}
    assert all(seconds > 0 for seconds in found["networks_s"].values())
    assert found["as_one_graph"] is False
    with pytest.raises(InputError, match="onnxruntime does not run on cuda"):
        gpu_close.main(["--backend", "onnxruntime"])


def test_cheap_questions_are_answered_or_say_why_not(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_questions.importlib.util, "find_spec", lambda name: None)
    lines = []
    assert gpu_questions.main(["-o", str(tmp_path / "answers.json")], lines.append) == 0
    found = json.loads((tmp_path / "answers.json").read_text())
    assert [json.loads(line) for line in lines] == [{question: answer} for question, answer in found.items()]
    assert "no NVIDIA" in found["gpu"]["absent"]
    assert "falls back to CPUExecutionProvider" in str(found["ONNX Runtime's CUDA provider"])
    assert found["peaks"] == found["TensorRT's builder"] == "there is no NVIDIA GPU to ask about"
    assert found["TensorRT-RTX"].startswith("not installed")


def test_on_a_gpu_diffusers_may_run_among_our_own_packages(monkeypatch):
    """Nothing can be fetched where a GPU is lent; on a CPU its environment is its own."""
    monkeypatch.setattr(entry.environments, "python_of", lambda folder: None)
    monkeypatch.setattr(entry.environments, "why_not", lambda folder: None)
    on_gpu = PRESETS["gpu"][0]
    assert entry._peer(contender("diffusers:fp16"), on_gpu)[0] == Path(sys.executable)
    with pytest.raises(InputError, match=r"runs on cpu, and this case on cuda"):
        entry._peer(contender("optimum:fp32"), on_gpu)
    with pytest.raises(InputError, match=r"its environment is not made yet: calotype bench peers diffusers"):
        entry._peer(contender("diffusers:fp32"), PRESETS["quick"][0])
