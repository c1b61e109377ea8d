"""The wheel in a fresh environment: it installs its dependencies, and the command runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--python"]


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


def environment(folder, *requirements) -> Path:
    """Install packages into a new environment, without compiled bytecode, and return its Python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    install = ["-q", "-c", ROOT / "constraints.txt", *requirements]
    if uv := shutil.which("uv", path=Path(sys.executable).parent):
        links = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        command = [uv, "pip", "install", "--python", python, *install]
        if subprocess.run(command, check=False, cwd=folder, env=os.environ | links).returncode == 0:
            return python
    subprocess.run([*PIP, python, "install", "--no-compile", *install], check=True, cwd=folder)
    return python


def packages(python) -> set[str]:
    done = subprocess.run([*PIP, python, "list", "--format", "json"], capture_output=True, check=True)
    return {package["name"].lower() for package in json.loads(done.stdout)}


def generate(python, *arguments, **variables):
    command = [python.with_name("calotype"), "generate", *arguments, "-o", "out.png"]
    environment = {**os.environ, "PYTHONWARNINGS": "error", **variables}
    folder = python.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.png").stat().st_size > 500


def test_a_plan_runs_in_an_environment_without_torch(wheel, saved_plan, tmp_path):
    python = environment(tmp_path / "env", wheel, "onnxruntime")
    generate(python, "x", "--steps", "4", "--model", saved_plan, CALOTYPE_HOME=str(tmp_path / "home"))
    assert not packages(python) & {"torch", "diffusers", "transformers", "onnx", "scipy", "safetensors"}


def test_a_fresh_environment_generates_an_image_and_serves(wheel, pipe, tmp_path):
    """The install step and the command of the container's Dockerfile."""
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    python = environment(tmp_path / "env", f"{wheel}[{extras}]")
    version = subprocess.run([python.with_name("calotype"), "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("calotype")
    generate(python, "a red ring on a white background", "--seed", "1", "--steps", "4")
    installed = packages(python)
    assert "pytest" not in installed
    assert not {n for n in installed if n.startswith(("nvidia", "triton"))}  # no GPU packages on a CPU machine
    assert_serves(python, tmp_path)


def assert_serves(python, tmp_path):
    """Start the server with the container's configuration, wait for its warm-up, and end it."""
    command = [python.with_name("calotype"), "serve", "--config", ROOT / "deploy" / "serve.toml", "--port", "0"]
    command += ["--host", "127.0.0.1", "--files-folder", tmp_path / "files"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    events = []
    while events[-1:] != ["ready"] and (line := server.stderr.readline()):
        events.append(json.loads(line)["event"])
    server.terminate()
    server.communicate(timeout=60)
    assert (events[-1], server.returncode) == ("ready", 0)
