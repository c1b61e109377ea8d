"""A plan without PyTorch: the size of its installation, and the time to its first image.

    python -m calotype.benchmarks.scripts.lean [--plan FOLDER] [--steps 20] [--runs 5]

For each backend, this installs the wheel and only that backend into a new environment. It measures the installed size;
the wall time of `calotype generate` with an empty home (cold) and after that (the best of `--runs`); the seconds from
the start of a Python process to its first and its second image; and the PSNR to the image of eager PyTorch. Needs the
repository and pip. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import calotype
from calotype.export import BuildSpec, build
from calotype.export.quality.metrics import psnr

ROOT = Path(__file__).resolve().parent.parent.parent
BACKENDS = ("onnxruntime", "openvino")
HEAVY = ("torch", "diffusers", "transformers", "onnx", "scipy", "safetensors")
PROMPT, SEED = "a large red circle on a blue background", 7

_SCRIPT = """
import sys, time, json
began = time.perf_counter()
import calotype
pipe = calotype.load(sys.argv[1], backend=sys.argv[2])
seconds = []
for _ in range(2):
    pipe(sys.argv[3], seed=int(sys.argv[4]), steps=int(sys.argv[5]))
    seconds.append(time.perf_counter() - began)
print(json.dumps([seconds[0], seconds[1] - seconds[0]]))
"""


@dataclass(frozen=True, kw_only=True)
class LeanFigures:
    """The figures of one backend."""

    backend: str
    installed_mib: float
    cold_s: float  # `calotype generate`, with an empty home
    warm_s: float
    first_s: float  # from the first line of a Python process to its first image
    second_s: float
    psnr_db: float


def wheel(folder: Path) -> Path:
    """Build the wheel from a copy: setuptools would include the files of an old build folder."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        folder,
        folder / "source",
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return next(folder.glob("calotype-*.whl"))


def environment(folder: Path, built: Path, backend: str) -> Path:
    """Install the wheel and one backend into a new environment. Return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command: list[str | Path] = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", built, backend]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    script = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    heavy = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    if heavy != "[]":
        raise RuntimeError(f"the lean environment must not contain {heavy}")
    return python


def installed_bytes(python: Path) -> int:
    """Return the size of site-packages without pip and setuptools, which venv installs."""
    (site,) = (python.parent.parent / "lib").glob("python*/site-packages")
    tools = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
    folders = [p for p in site.iterdir() if not p.name.startswith(tools)]
    files = [f for p in folders for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    return sum(f.stat().st_size for f in files)


def measure(
    python: Path, backend: str, plan: Path, reference: NDArray[np.float64], options: argparse.Namespace
) -> LeanFigures:
    with tempfile.TemporaryDirectory() as folder:
        home, out = {**os.environ, "CALOTYPE_HOME": f"{folder}/home"}, Path(folder) / "out.png"
        command = [python.parent / "calotype", "generate", PROMPT, "--seed", SEED, "--steps", options.steps]
        command += ["--model", plan, "--backend", backend, "-o", out]

        def generate() -> float:
            began = time.perf_counter()
            subprocess.run(list(map(str, command)), env=home, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        cold, warm = generate(), min(generate() for _ in range(options.runs))
        script = [python, "-c", _SCRIPT, plan, backend, PROMPT, SEED, options.steps]
        timings = [json.loads(subprocess.check_output(list(map(str, script)), env=home)) for _ in range(options.runs)]
        with Image.open(out) as image:
            near = psnr(np.asarray(image) / 255, reference)
    first, second = (min(column) for column in zip(*timings, strict=True))
    return LeanFigures(
        backend=backend,
        installed_mib=installed_bytes(python) / 2**20,
        cold_s=cold,
        warm_s=warm,
        first_s=first,
        second_s=second,
        psnr_db=near,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", type=Path, help="the folder of a plan; by default one of the demonstration model is built"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plan = options.plan.resolve() if options.plan else work / "plan"
        if not options.plan:
            build(BuildSpec(model="demo", output=plan))
        # PyTorch generates the reference of the demonstration model; a plan has no weights for PyTorch.
        reference_of = calotype.load(plan if options.plan else "demo", backend="auto" if options.plan else "eager")
        reference = np.asarray(reference_of(PROMPT, seed=SEED, steps=options.steps).images[0]) / 255
        built = wheel(work)
        rows = [measure(environment(work / b, built, b), b, plan, reference, options) for b in BACKENDS]
    print(f"{'backend':<12} {'installed':>10} {'cold':>8} {'warm':>8} {'first':>8} {'second':>8} {'PSNR':>9}")
    for r in rows:
        seconds = " ".join(f"{s:6.2f} s" for s in (r.cold_s, r.warm_s, r.first_s, r.second_s))
        print(f"{r.backend:<12} {r.installed_mib:>6.0f} MiB {seconds} {r.psnr_db:>6.1f} dB")
    print(json.dumps({"benchmark": "lean", "steps": options.steps, "rows": [asdict(r) for r in rows]}))


if __name__ == "__main__":
    main()
