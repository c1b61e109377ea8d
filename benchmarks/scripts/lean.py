"""A plan without PyTorch: the size of its installation, and the time to its first image.

    python -m calotype.benchmarks.scripts.lean [--plan FOLDER] [--steps 20] [--runs 5]

For each backend, this installs the wheel and only that backend into a new environment. It measures the installed size;
the wall time of `calotype generate` with an empty home (cold) and after that (the best of `--runs`); and the seconds
from the start of a Python process to its first and its second image. Needs the repository and pip. The last line is
JSON.
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
from pathlib import Path

from calotype.export import BuildSpec, build

ROOT = Path(__file__).resolve().parent.parent.parent
BACKENDS = ("onnxruntime", "openvino")
HEAVY = ("torch", "diffusers", "transformers", "onnx", "scipy", "safetensors")
TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")  # of a new environment
PROMPT = "a large red circle on a blue background"

_SCRIPT = """
import sys, time
began = time.perf_counter()
import calotype
pipe = calotype.load(sys.argv[1], backend=sys.argv[2])
for _ in range(2):
    pipe(sys.argv[3], seed=7, steps=int(sys.argv[4]))
    print(time.perf_counter() - began)
"""


Command = list[str | Path]


def wheel(folder: Path) -> Path:
    """Build the wheel from a copy: setuptools would include the files of an old build folder."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    pip: Command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    return next(folder.glob("calotype-*.whl"))


def environment(folder: Path, built: Path, backend: str) -> Path:
    """Install the wheel and one backend into a new environment. Return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip: Command = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", built, backend]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    script = f"import importlib.util as u; print(*(n for n in {HEAVY!r} if u.find_spec(n)))"
    if heavy := subprocess.check_output([python, "-c", script], text=True).strip():
        raise RuntimeError(f"the lean environment must not contain {heavy}")
    return python


def measure(python: Path, backend: str, plan: Path, *, steps: str, runs: int) -> dict[str, float]:
    """Return the figures of one backend."""
    (site,) = (python.parent.parent / "lib").glob("python*/site-packages")
    files = [path for path in site.rglob("*") if path.is_file()]
    installed = sum(path.stat().st_size for path in files if not path.relative_to(site).parts[0].startswith(TOOLS))
    with tempfile.TemporaryDirectory() as folder:
        home = {**os.environ, "CALOTYPE_HOME": f"{folder}/home"}
        command: Command = [python.parent / "calotype", "generate", PROMPT, "--seed", "7", "--steps", steps]
        command += ["--model", plan, "--backend", backend, "-o", f"{folder}/out.png"]
        walls = []
        for _ in range(1 + runs):
            began = time.perf_counter()
            subprocess.run(command, env=home, check=True, stdout=subprocess.DEVNULL)
            walls.append(time.perf_counter() - began)
        script: Command = [python, "-c", _SCRIPT, plan, backend, PROMPT, steps]
        ends = [list(map(float, subprocess.check_output(script, env=home).split())) for _ in range(runs)]
    figures = {"installed_mib": installed / 2**20, "cold_s": walls[0], "warm_s": min(walls[1:])}
    return figures | {"first_s": min(e[0] for e in ends), "second_s": min(e[1] - e[0] for e in ends)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="a plan; by default one of the demonstration model is built")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plan = options.plan.resolve() if options.plan else work / "plan"
        if not options.plan:
            build(BuildSpec(model="demo", output=plan))
        built, rows = wheel(work), []
        for backend in BACKENDS:
            python = environment(work / backend, built, backend)
            figures = measure(python, backend, plan, steps=str(options.steps), runs=options.runs)
            print(backend, "  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
            rows.append({"backend": backend, **figures})
    print(json.dumps({"benchmark": "lean", "steps": options.steps, "rows": rows}))


if __name__ == "__main__":
    main()
