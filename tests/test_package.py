"""The wheel in a fresh environment: it installs its dependencies, and the command runs."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy: setuptools would include files of an old build folder."""
    out = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, out / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, out / "source"], check=True)
    return next(out.glob("calotype-*.whl"))


def test_the_wheel_contains_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} <= {"calotype", next(n for n in names if "dist-info" in n).split("/")[0]}
    for name in (
        "py.typed",
        "export/onnx/trace.py",
        "demo_model/unet/config.json",
        "demo_canny/diffusion_pytorch_model.safetensors",
        "demo_clip/model.safetensors",
        "demo_clip/preprocessor_config.json",
    ):
        assert f"calotype/{name}" in names
    assert wheel.stat().st_size < 22 << 20


def test_the_wheel_does_not_contain_or_import_the_training(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sources = {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".py")}
    assert sources["calotype/export/judge/judge.py"]  # a metric of builds
    assert not [n for n in sources if "/tools/" in n or "train" in Path(n).name]
    assert not [n for n, text in sources.items() if "demo_training" in text]


def test_a_plan_runs_in_an_environment_without_torch(wheel, saved_plan, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python, constraints = tmp_path / "env" / "bin" / "python", ROOT / "constraints.txt"
    install = [python, "-m", "pip", "install", "-q", "-c", constraints, wheel, "onnxruntime"]
    subprocess.run(install, check=True, cwd=tmp_path)
    command = [tmp_path / "env" / "bin" / "calotype", "generate", "x", "--steps", "4", "--model", saved_plan]
    environment = {**os.environ, "CALOTYPE_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").stat().st_size > 500
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True).stdout
    installed = {p["name"].lower() for p in json.loads(listed)}
    assert not installed & {"torch", "diffusers", "transformers", "onnx", "scipy", "safetensors"}


def test_a_fresh_environment_generates_an_image(wheel, pipe, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[build,cpu]"],
        check=True,
        cwd=tmp_path,
    )
    command = tmp_path / "env" / "bin" / "calotype"
    assert subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.startswith(
        "calotype"
    )
    done = subprocess.run(
        [command, "generate", "a red ring on a white background", "--seed", "1", "--steps", "4", "-o", "ring.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ring.png").stat().st_size > 500
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True).stdout
    installed = {p["name"].lower() for p in json.loads(listed)}
    assert "pytest" not in installed
    assert not {n for n in installed if n.startswith(("nvidia", "triton"))}  # no GPU packages on a CPU machine
