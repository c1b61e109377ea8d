"""Tests of the GPU benchmarks that run on a CPU: targets on hand-written runs, and the commands."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calotype.benchmarks.measure.record import ResultRow, Speed
from calotype.benchmarks.report import targets
from calotype.benchmarks.run import start_contender
from calotype.benchmarks.scripts import gpu_close
from calotype.benchmarks.suite.contenders import contender
from calotype.benchmarks.suite.presets import PRESETS
from calotype.errors import InputError

SD15, _, SDXL, *_ = targets.TARGETS


def row(
    at: str, contender: str, seconds: float | None, *, batch: int = 1, steps: int = 20, reason: str = ""
) -> ResultRow:
    maker, *rest = contender.split(":")
    speed = None
    if seconds is not None:
        fields = {"p10_s": seconds, "p90_s": seconds, "samples_s": (seconds,), "it_per_s": None}
        speed = Speed(median_s=seconds, images_per_s=batch / seconds, **fields)
    return ResultRow(
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


def test_every_target_has_a_case_and_contenders_in_the_preset():
    cases = {case.id: case for case in PRESETS["gpu"]}
    for target in targets.TARGETS:
        runs = {c.precision.partition("+")[0] for c in cases[target.at].contenders if c.is_ours}
        assert runs & {p.partition("+")[0] for p in target.precisions}, target
    names = [{c.name for c in cases[t.at].contenders} for t in targets.TARGETS]
    assert all({"diffusers:fp16", "torch-compile:fp16"} <= results for results in names)


def test_the_best_correct_row_decides_about_a_target():
    rows = [
        row(SD15.at, "calotype:cuda:fp16", 0.075),  # 267 calls a second
        row(SD15.at, "calotype:tensorrt:fp16", 0.1),
        row(SD15.at, "torch-compile:fp16", 0.09),
        row(SDXL.at, "calotype:cuda:fp16", 0.9, steps=30),
        row(SDXL.at, "calotype:tensorrt:fp8", None, reason="tensorrt is not installed"),
    ]
    first, second, third, fourth, *others = targets.describe_targets(rows)
    assert first == f"met        {SD15.words()}; calotype:cuda:fp16 has 267"
    assert second.startswith("missed")
    assert second.endswith("calotype:cuda:fp16 has 1.2")
    assert third.startswith("missed")
    assert fourth.startswith("no figure")
    assert fourth.endswith("(calotype:tensorrt:fp8: tensorrt is not installed)")
    assert all(line.startswith("no figure") for line in others)


def test_the_row_of_a_peer_is_not_our_figure():
    lines = list(targets.describe_targets([row(SD15.at, "diffusers:fp16", 0.01)]))
    assert all(line.startswith("no figure") for line in lines)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.words())
def test_a_limit_is_met_from_its_side(target):
    bound = target.minimum or target.maximum
    better, worse = (1.1, 0.9) if target.minimum else (0.9, 1.1)
    assert target.met(bound * better)
    assert not target.met(bound * worse)
    assert replace(target, figure="x").words().endswith(target.unit)


def test_the_parts_of_an_image_are_timed_by_the_clock(fake):
    ticks = iter([5.0, 1.0, 3.0, 7.0, 9.0, 8.0, 2.0, 2.0, 4.0])  # three rounds of each network
    request = {"prompt": "x", "steps": 2, "height": 128, "width": 128, "guidance_scale": 5.0, "num_images": 1}
    results = gpu_close.close(fake, clock=lambda run: run() and next(ticks), rounds=3, request=request)
    assert results["networks_s"] == {"text_encoder": 3.0, "unet": 8.0, "vae_decoder": 2.0}
    assert results["besides_networks_s"] == pytest.approx(results["image_s"] - 3 - 2 * 8 - 2)


def test_the_busy_time_of_a_gpu_comes_from_its_activities():
    """Two spans that overlap, one inside another, and gaps of 4 and 6 microseconds."""
    spans = [(10.0, 20.0), (15.0, 26.0), (16.0, 18.0), (30.0, 40.0), (46.0, 50.0)]
    assert gpu_close.busy_and_gaps(spans) == (30.0, [4.0, 6.0])
    assert gpu_close.host_share(spans) == {"busy_share": 0.75, "activities": 5, "median_gap_us": 5.0}
    assert gpu_close.host_share([]) == {}


def test_the_parts_of_an_image_are_timed_on_a_cpu(saved_plan, capsys):
    arguments = ["--model", str(saved_plan), "--backend", "onnxruntime", "--device", "cpu"]
    assert gpu_close.main([*arguments, "--steps", "2", "--size", "64", "--rounds", "2"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["networks_s"]) == {"text_encoder", "unet", "vae_decoder"}
    assert all(seconds > 0 for seconds in results["networks_s"].values())
    assert results["as_one_graph"] is False
    with pytest.raises(InputError, match="onnxruntime"):
        gpu_close.main(["--backend", "onnxruntime"])


def test_on_a_gpu_diffusers_may_run_with_our_packages(monkeypatch):
    """A machine with a GPU may have no network. On a CPU, diffusers has its own environment."""
    monkeypatch.setattr(start_contender.environments, "python_of", lambda folder: None)
    monkeypatch.setattr(start_contender.environments, "failure_reason", lambda folder: None)
    on_gpu = PRESETS["gpu"][0]
    assert start_contender.python_of_peer(contender("diffusers:fp16"), on_gpu) == Path(sys.executable)
    with pytest.raises(InputError, match="cuda"):
        start_contender.python_of_peer(contender("optimum:fp32"), on_gpu)
    with pytest.raises(InputError, match="calotype bench peers diffusers"):
        start_contender.python_of_peer(contender("diffusers:fp32"), PRESETS["quick"][0])
