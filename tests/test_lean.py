"""A plan runs with numpy, tokenizers, pillow and one backend; a missing package raises one plain error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import calotype
from calotype.export.quality.metrics import psnr

HEAVY = ("torch", "torchgen", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "scipy", "safetensors")
PROMPT = "a large red circle on a blue background"
BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a Python without the heavy packages."""
    folder = tmp_path_factory.mktemp("lean")
    for entry in Path(onnxruntime.__file__).parent.parent.iterdir():
        if entry.name.replace(".", "-").split("-")[0] not in HEAVY and "calotype" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    home = tmp_path_factory.mktemp("lean-home")
    ours = Path(calotype.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": f"{folder}:{ours}", "CALOTYPE_HOME": str(home)}


def run_lean(environment, *arguments, **more):
    command = [sys.executable, "-S", "-W", "error", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **more)


def test_the_lean_environment_is_lean(environment):
    code = f"import importlib.util as u, calotype; print([n for n in {HEAVY} if u.find_spec(n)], calotype.__file__)"
    assert run_lean(environment, "-c", code).stdout == f"[] {calotype.__file__}\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_image_matches_pytorch(environment, saved_plan, pipes, tmp_path, backend):
    options = ("--seed", 7, "--steps", 6, "--model", saved_plan, "--backend", backend, "-o", tmp_path / "x.png")
    done = run_lean(environment, "-m", "calotype", "generate", PROMPT, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with Image.open(tmp_path / "x.png") as image:
        got = np.asarray(image) / 255
    assert psnr(got, np.asarray(pipes["eager"](PROMPT, seed=7, steps=6).images[0]) / 255) >= 60


NOTHING_HEAVY = """
import importlib.machinery, sys

class Refusing:
    "Pretend that the package is installed, and raise when it is imported."
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise AssertionError(f"{{spec.name}} was imported")
    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Refusing())
import calotype
pipe = calotype.load(sys.argv[1], backend=sys.argv[2])
result = pipe("x", steps=3, seed=1, num_images=2, negative_prompt="y")
mask = result.images[0].convert("L")
pipe("x", image=result.images[0], strength=0.7, steps=4, seed=1)
pipe("x", image=result.images[0], mask_image=mask, steps=4, seed=1)
pipe.decode(pipe.encode(result.images[0]))
print(len(result.images), result.report.components[1].backend)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_heavy_package_is_imported(saved_plan, tmp_path, backend):
    code = NOTHING_HEAVY.format(heavy=HEAVY)
    environment = {**os.environ, "CALOTYPE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, saved_plan, backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 {backend}\n"


ERRORS = {
    "a model that has to be traced": (
        ["generate", "x"],
        ["torch, onnxscript, diffusers, transformers", "'calotype[build]'"],
    ),
    "a model that is not there": (["generate", "x", "--model", "nowhere"], ["nowhere"]),
    "the eager backend": (["generate", "x", "--backend", "eager"], ["torch, diffusers, transformers"]),
    "a number of steps": (
        ["generate", "x", "--steps", "51", "--model", "PLAN"],
        [
            "51 steps",
            "DPMSolverMultistepScheduler",
            "'calotype[build]'",
            "calotype build",
        ],
    ),
    "a scheduler": (
        ["generate", "x", "--scheduler", "euler", "--model", "PLAN"],
        ["euler", "20 steps", "1-50"],
    ),
    "a number of steps for image-to-image": (
        ["generate", "x", "--image", "IMAGE", "--steps", "7", "--model", "PLAN"],
        ["7 steps", "1-6, 8, 10"],
    ),
    "an unknown scheduler": (["generate", "x", "--scheduler", "eulr", "--model", "PLAN"], ["euler"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_missing_package_is_one_error(environment, saved_plan, tmp_path, case):
    arguments, expected = ERRORS[case]
    image = Path(__file__).parent.parent / "engine" / "demo_model" / "samples.png"
    named = {"PLAN": saved_plan, "IMAGE": image}
    done = run_lean(environment, "-m", "calotype", *(named.get(a, a) for a in arguments), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("calotype: ")
    assert done.stderr.count("\n") == 1
    for words in expected:
        assert words in done.stderr
