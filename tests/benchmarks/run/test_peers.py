"""Tests of the peers that need no environment of their own: the protocol, the environments, and what each peer
declines.
"""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import diffusers
import numpy as np
import pytest

from calotype.benchmarks.run import environments
from calotype.errors import BackendError, InputError
from calotype.export.quality.metrics import psnr
from calotype.sampling.schedulers import spec_from

SERVE = environments.FOLDER / "serve.py"
PROMPTS, SEEDS = ["a large red circle on a blue background", "a small green star on a yellow background"], [7, 8]

FAKE = """
import os, sys
import numpy as np
print("printed while it is imported")

class Peer:
    parts = {"unet": [0.25, 0.5]}

    def unsupported_reason(self, job):
        return job.get("cannot")

    def load(self, job):
        os.system("echo printed by a process of a library")
        if job.get("exits"):
            sys.exit("a library gave up")
        return {"threads": job["threads"], "artifact_bytes": 5, "versions": {"fake": "1"}}

    def generate(self, prompts, negative, seeds):
        print("printed while it generates")
        if "fail" in prompts:
            raise ValueError("the first line\\nand another")
        return np.stack([np.full((4, 6, 3), seed, np.uint8) for seed in seeds])

    def device_peak_bytes(self):
        return None
"""


def serve(file, *requests):
    """Return the answers of one process, in order."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = [sys.executable, str(SERVE), str(file)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def fake(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(FAKE)
    return file


def test_answers_are_json_whatever_is_printed(fake, tmp_path):
    generate = {
        "op": "generate",
        "prompts": ["x", "y"],
        "negative": None,
        "seeds": [3, 4],
        "out": str(tmp_path / "out.npy"),
    }
    loaded, generated = serve(
        fake, {"op": "load", "job": {"threads": 2, "cache_bytes": 1 << 20}}, generate, {"op": "quit"}
    )
    assert loaded.pop("load_s") > 0
    reported = {"threads": 2, "artifact_bytes": 5, "versions": {"fake": "1"}, "notes": [], "build_s": None}
    assert loaded == {"ok": True, "build_when": "", **reported}
    assert 0 < generated.pop("seconds") < 10
    assert generated == {"ok": True, "parts": {"unet": [0.25, 0.5]}, "device_peak_bytes": None}
    assert np.load(tmp_path / "out.npy")[:, 0, 0, 0].tolist() == [3, 4]


def test_a_peer_that_fails_returns_the_error_and_goes_on(fake):
    generate = {"op": "generate", "negative": None, "seeds": [1], "out": None}
    exits, unsupported_reason, _, failed, generated = serve(
        fake,
        {"op": "load", "job": {"threads": 1, "exits": True}},
        {"op": "load", "job": {"cannot": "it has no hands"}},
        {"op": "load", "job": {"threads": 1}},
        {**generate, "prompts": ["fail"]},
        {**generate, "prompts": ["x"]},
    )
    assert exits == {"ok": False, "error": "SystemExit: a library gave up"}
    assert unsupported_reason == {"ok": False, "cannot": "it has no hands"}
    assert failed == {"ok": False, "error": "ValueError: the first line"}
    assert generated["ok"]


@pytest.mark.parametrize("name", environments.PEERS)
def test_every_peer_is_pinned_and_has_its_class(name):
    file = environments.worker_file(name)
    lines = file.with_name("requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)
    assert [p for p in pins if p.startswith("torch==")] in ([], ["torch==2.13.0"])  # the build without CUDA's libraries
    (peer,) = (n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == "Peer")
    methods = {node.name for node in peer.body if isinstance(node, ast.FunctionDef)}
    assert methods >= {"unsupported_reason", "load", "generate", "device_peak_bytes"} or peer.bases


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A folder of peers with one peer `one`, and its own home; pip sees the wheel `tiny` and no index."""
    folder = tmp_path / "peers" / "one"
    folder.mkdir(parents=True)
    (folder / "peer.py").write_text(FAKE)
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tmp_path, "CALOTYPE_HOME": tmp_path / "home"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(environments, "FOLDER", folder.parent)
    monkeypatch.setattr(environments, "PEERS", ("one",))
    return folder


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "home" / "bench" / "environments").iterdir())


def test_an_environment_that_cannot_be_made_leaves_only_the_reason(peers, tmp_path):
    (peers / "requirements.txt").write_text("nothing-of-this-name==1.0\n")
    assert environments.failure_reason("one") is None
    with pytest.raises(BackendError) as raised:
        environments.make("one")
    assert "nothing-of-this-name" in str(raised.value)
    assert str(raised.value) == environments.failure_reason("one")
    assert environments.python_of("one") is None
    (left,) = kept(tmp_path)
    assert left.endswith(".failed")


def test_an_environment_belongs_to_its_requirements(peers, tmp_path):
    (peers / "requirements.txt").write_text("tiny==1.0\n")
    lines = []
    python = environments.make("one", show=lines.append)
    assert any("tiny" in line for line in lines)
    assert python == environments.python_of("one") == environments.make("one", show=pytest.fail)
    subprocess.run([python, "-c", "import tiny"], check=True)
    assert kept(tmp_path) == [python.parent.parent.name]  # neither a lock nor a partial folder
    (peers / "requirements.txt").write_text("tiny==1.1\n")
    assert environments.python_of("one") is None
    environments.remove("one")
    assert kept(tmp_path) == []


def test_an_unknown_peer_is_refused():
    with pytest.raises(InputError, match="onnx"):
        environments.python_of("onnx")


@pytest.mark.parametrize(
    ("output", "expected"),
    {
        "      CMake Error: CMAKE_C_COMPILER not set, after EnableLanguage\n  ERROR: Failed building wheel for it": (
            "CMake Error: CMAKE_C_COMPILER not set, after EnableLanguage, in building it."
        ),
        "error: subprocess-exited-with-error\nx.cpp:1: fatal error: a.h: No such file or directory": (
            "fatal error: a.h: No such file or directory."
        ),
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": (
            "No space left on device."
        ),
        "ERROR: ResolutionImpossible: see a page\n    two 2.0 depends on one<2": "two 2.0 depends on one<2.",
        "nothing of the kind": "",
    }.items(),
)
def test_the_most_useful_line_of_pip(output, expected):
    assert environments.reason_of(output.splitlines()) == expected


def job(folder, scheduler="euler", **more):
    spec = spec_from(scheduler, json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
    fields = {"model": str(folder), "plan": None, "precision": "fp32", "settings": {}, "height": 128, "width": 128}
    fields |= {"batch": 2, "steps": 2, "guidance": 5.0, "controlnets": [], "control_images": [], "threads": 1}
    fields["scheduler"] = {"name": scheduler, "class": spec.class_name, "config": dict(spec.config)}
    return fields | {"device": "cpu", "cache_bytes": 0, **more}


DECLINED = {
    "diffusers, fp16 on a CPU": ("diffusers", {"precision": "fp16"}, "bf16"),
    "optimum, ControlNets": ("optimum", {"controlnets": ["x"]}, "ControlNets"),
    "optimum, without a plan": ("optimum", {}, "plan"),
    "cuda, on a CPU": ("onnxruntime_cuda", {"plan": "{model}"}, "NVIDIA GPU"),
    "tensorrt, on a CPU": ("tensorrt", {"plan": "{model}"}, "NVIDIA GPU"),
    "genai, Karras": ("openvino_genai", {"scheduler": "euler-karras"}, "Karras"),
    "genai, a scheduler": ("openvino_genai", {"scheduler": "unipc"}, "UniPCMultistepScheduler"),
    "genai, fp16": ("openvino_genai", {"precision": "fp16"}, "fp16"),
    "cpp, fp32": ("stable_diffusion_cpp", {}, "fp16"),
    "cpp, the demo": ("stable_diffusion_cpp", {"precision": "fp16"}, "U-Net [64, 128]"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_a_peer_names_what_it_does_not_support(demo_folder, tmp_path, case):
    name, options, keyword = DECLINED[case]
    options = {key: str(demo_folder) if value == "{model}" else value for key, value in options.items()}
    request = {"op": "load", "job": job(demo_folder, **options, cache=str(tmp_path))}
    (answer,) = serve(environments.worker_file(name), request)
    assert keyword in answer.get("cannot", ""), answer


def test_diffusers_generates_the_image_of_eager(demo_folder, pipes, tmp_path):
    generate = {
        "op": "generate",
        "prompts": PROMPTS,
        "negative": "a blue ring",
        "seeds": SEEDS,
        "out": f"{tmp_path}/out.npy",
    }
    load = {"op": "load", "job": job(demo_folder, cache=str(tmp_path))}
    loaded, generated = serve(environments.worker_file("diffusers"), load, generate)
    assert (loaded["threads"], loaded["versions"]["diffusers"]) == (1, diffusers.__version__)
    assert {name: len(seconds) for name, seconds in generated["parts"].items()} == {
        "text_encoder": 2,
        "unet": 2,
        "vae_decoder": 1,
    }
    fields = {"seed": SEEDS, "steps": 2, "scheduler": "euler", "guidance_scale": 5.0, "negative_prompt": "a blue ring"}
    ours = pipes["eager"](PROMPTS, **fields).images
    for theirs, image in zip(np.load(tmp_path / "out.npy"), ours, strict=True):
        assert theirs.std() > 5
        assert psnr(theirs / 255, np.asarray(image) / 255) >= 60


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_the_sigmas_for_stable_diffusion_cpp_are_those_of_diffusers(spacing):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    config["timestep_spacing"] = spacing
    path = Path(environments.worker_file("stable_diffusion_cpp")).with_name("sigmas.py")
    spec = importlib.util.spec_from_file_location("sigmas", path)
    sigmas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sigmas)
    scheduler = diffusers.EulerDiscreteScheduler(**config)
    for steps in (1, 2, 7, 20, 30):
        scheduler.set_timesteps(steps)
        np.testing.assert_allclose(sigmas.euler(config, steps), scheduler.sigmas, rtol=2e-5)
