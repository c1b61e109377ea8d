"""Configuration of a build: flags, TOML and the dataclass agree, and mistakes are reported before any work."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calotype.errors import InputError
from calotype.export.builder.spec import BuildSpec, flag_of, read_config, spec_from
from calotype.export.commands.cli import app
from calotype.export.quality.bounds import QualityBound, failed, parse_bounds
from calotype.plan.profile import Range


def test_texts_become_a_spec():
    spec = spec_from(
        {
            "model": "demo",
            "output": "plan",
            "height": "512:768:1024",
            "width": "512",
            "batch": "1:2:8",
            "lora": ["a.safetensors:0.8"],
            "max_loss": ["psnr>=28,ssim>=0.9", "judge_drop<=0.05"],
            "precision": "int8",
        }
    )
    assert spec.height == Range(min=512, opt=768, max=1024)
    assert spec.width == Range(min=512, opt=512, max=512)
    assert [str(b) for b in spec.max_loss] == ["psnr>=28", "ssim>=0.9", "judge_drop<=0.05"]
    assert spec.proof_counts == (8, 20)
    assert spec_from({"model": "demo", "output": "plan"}).proof_counts == (1, 4)


def test_paths_may_be_texts():
    spec = BuildSpec(model="demo", output="plan", prompts="prompts.txt", clip_model="clip")
    assert (spec.output, spec.prompts, spec.clip_model) == (Path("plan"), Path("prompts.txt"), Path("clip"))


def test_the_command_of_a_spec_makes_the_same_spec():
    values = {
        **{"model": "a model", "output": "a plan", "backend": "openvino", "precision": "auto", "height": "64:128:256"},
        **{"fallback": True, "scheduler": ["euler", "ddim"], "max_loss": "psnr>=25", "proof": 3, "lora": ["x:0.5"]},
    }
    spec = spec_from(values)
    words = shlex.split(spec.command())
    assert words[:3] == ["calotype", "build", "a model"]
    again: dict = {"model": words[2], "output": "a plan"}
    names = {flag_of(f.name): f.name for f in fields(BuildSpec)}
    flags = iter(words[3:])
    for flag in flags:
        name = names[flag]
        if name == "fallback":
            again[name] = True
        elif name in ("scheduler", "lora", "max_loss"):
            again.setdefault(name, []).append(next(flags))
        else:
            again[name] = next(flags)
    assert spec_from(again) == spec


@pytest.mark.parametrize(
    ("values", "keyword"),
    [
        ({"backend": "tpu"}, "'tpu'"),
        ({"precision": "fp4"}, "'fp4'"),
        ({"height": "big"}, "--height"),
        ({"height": "512:256"}, "--height"),
        ({"height": "512:256:128"}, "--height"),
        ({"batch": "0"}, "--batch"),
        ({"max_loss": "psnr<=30"}, "--max-loss"),
        ({"max_loss": "beauty>=1"}, "beauty"),
        ({"max_loss": "psnr>=3,psnr>=4"}, "one bound"),
        ({"proof": "many"}, "--proof"),
        ({"proof": 0}, "4096"),
        ({"fallback": "yes"}, "--fallback"),
        ({"lora": 3}, "--lora"),
        ({"fit": "euler"}, "--fit"),
        ({"fit": "euler:20:many"}, "--fit"),
        ({"fit": "euler:1:1"}, "steps"),
        ({"color": "red"}, "color"),
        ({"model": ""}, "model"),
        ({"output": None}, "output"),
    ],
)
def test_invalid_values_are_rejected(values, keyword):
    with pytest.raises(InputError, match=keyword) as error:
        spec_from({"model": "demo", "output": "plan", **values})
    assert [error.value.argument] == list(values)


def test_a_toml_file_has_the_same_fields(tmp_path):
    path = tmp_path / "build.toml"
    path.write_text(
        'model = "demo"\noutput = "p"\nbatch = "1:2:4"\nmax-loss = ["psnr>=20"]\nproof = 2\nfallback = true\n'
    )
    spec = spec_from(read_config(path))
    assert (spec.model, spec.output, spec.batch) == ("demo", Path("p"), Range(min=1, opt=2, max=4))
    assert (spec.max_loss, spec.proof, spec.fallback) == ((QualityBound(metric="psnr", limit=20.0),), 2, True)
    path.write_text("model = ")
    with pytest.raises(InputError, match="TOML"):
        read_config(path)
    with pytest.raises(InputError, match=r"none\.toml"):
        read_config(tmp_path / "none.toml")


def test_the_command_line_has_an_option_for_every_field():
    shown = CliRunner().invoke(app, ["build", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for f in fields(BuildSpec):
        assert (f.name.upper() if f.name == "model" else flag_of(f.name)) in shown
        assert f.metadata["help"].split("[")[0].strip()[:30] in shown
    assert "--config" in shown
    assert "--json-progress" in shown


def test_bounds():
    bounds = parse_bounds(["psnr>=30, lpips<=0.1"])
    assert failed(bounds, {"psnr": 30.0, "lpips": 0.1}) == ()
    broken = failed(bounds, {"psnr": 29.9, "lpips": 0.2})
    assert ["29.9" in broken[0], "lpips<=0.1" in broken[1]] == [True, True]
    assert len(failed(bounds, {"psnr": float("nan"), "lpips": float("nan")})) == 2  # NaN breaks every bound
    assert len(failed(bounds, {})) == 2
