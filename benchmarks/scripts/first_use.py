"""The first use of a model that no cache knows, next to GenAI: `python -m calotype.benchmarks.scripts.first_use`.

    python -m calotype.benchmarks.scripts.first_use [sd15 | FOLDER] [--size 512] [--build]

Each row is a new process with an empty cache, timed from its start to its end: `calotype.load` and an image of one
step; the same again, with the cache of the first; GenAI's conversion; its load and image. `--build` adds `calotype
build` in bf16. The memory is the largest sum of all processes of a row (Linux: shared pages are counted once). GenAI's
environment is made first: `calotype bench peers openvino-genai`. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calotype.errors import BackendError
from calotype.export.sources.configs import MODELS
from calotype.system.memory import proc_bytes

from ..measure.system_load import machine
from ..run.environments import python_of, worker_file
from ..suite.models import model_folder

PEER = "openvino_genai"
_INTERVAL_S = 0.25

# Both print a line of JSON: the seconds from the start of Python to the loaded pipeline, and to the image.
_CALOTYPE = """
import json, sys, time
began = time.perf_counter()
import calotype
pipe = calotype.load(sys.argv[1])
loaded = time.perf_counter()
size = int(sys.argv[2])
result = pipe("a b c d", steps=1, seed=0, height=size, width=size)
done = time.perf_counter()
report = str(result.report).partition("\\n")[2]  # without the model's folder
print(json.dumps({"load_s": loaded - began, "image_s": done - loaded, "report": report}))
"""
_GENAI = """
import json, sys, time
began = time.perf_counter()
import openvino_genai as genai
size = int(sys.argv[2])
pipe = genai.Text2ImagePipeline(sys.argv[1])
pipe.reshape(1, size, size, 7.5)
pipe.compile("CPU", INFERENCE_PRECISION_HINT="bf16")
loaded = time.perf_counter()
pipe.generate("a b c d", num_inference_steps=1, height=size, width=size, guidance_scale=7.5)
done = time.perf_counter()
print(json.dumps({"load_s": loaded - began, "image_s": done - loaded}))
"""


def measure(model: str, *, size: int, builds: bool, show: Callable[[str], None]) -> dict[str, Any]:
    """Return the seconds and the peak memory of each row, by name. `show` gets each row when it is there.

    Raises:
        BackendError: GenAI's environment does not exist.
    """
    peer = python_of(PEER)
    if peer is None:
        raise BackendError("GenAI's environment does not exist: calotype bench peers openvino-genai", backend=PEER)
    folder = str(model_folder(model)) if model in MODELS else model
    _read_once(Path(folder))
    rows: dict[str, Any] = {}

    def add(name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        rows[name] = _timed(command, environment)
        show(_line(name, rows[name]))

    with tempfile.TemporaryDirectory(prefix="first-use-") as scratch:
        home = {"CALOTYPE_HOME": f"{scratch}/home"}
        own = [sys.executable, "-P", "-c", _CALOTYPE, folder, str(size)]
        add("calotype, first process", own, home)
        add("calotype, second process", own, home)
        converted = f"{scratch}/converted"
        converter = worker_file(PEER).with_name("convert.py")
        add("GenAI, conversion", [str(peer), str(converter), folder, converted, "fp32"], {})
        add("GenAI, load and image", [str(peer), "-c", _GENAI, converted, str(size)], {})
        if builds:
            command = [sys.executable, "-P", "-m", "calotype", "build", folder, "--backend", "openvino"]
            command += ["--precision", "bf16", "-o", f"{scratch}/plan"]
            add("calotype build", command, {"CALOTYPE_HOME": f"{scratch}/home of the build"})
    return {"model": model, "size": size, "machine": machine(), "rows": rows}


def _line(name: str, row: Mapping[str, Any]) -> str:
    parts = [f"{row[key]:.1f}" if key in row else "" for key in ("load_s", "image_s")]
    return f"| {name} | {row['seconds']:.1f} | {parts[0]} | {parts[1]} | {row['peak_bytes'] / 2**30:.1f} GiB |"


def _read_once(folder: Path) -> None:
    """Read all files, so that the first contender does not wait for the disk where the others do not."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _timed(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command, and return its seconds, its peak memory, and the JSON of its last line if it prints one."""
    began, peak, done = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def watch() -> None:
        while not done.wait(_INTERVAL_S):
            peak[0] = max(peak[0], sum(_shared_bytes(pid) for pid in _family(process.pid)))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    out, err = process.communicate()
    seconds = time.perf_counter() - began
    done.set()
    watching.join()
    if process.returncode:
        raise BackendError(f"{command[0]} failed: {err.strip().rpartition(chr(10))[2]}", backend=PEER)
    last = out.strip().rpartition("\n")[2]
    printed = json.loads(last) if last.startswith("{") else {}
    return {"seconds": seconds, "peak_bytes": peak[0], **printed}


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _shared_bytes(pid: int) -> int:
    """Return the memory of a process, with each shared page divided by the number of its users."""
    return proc_bytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss") or 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sd15", help="sd15, or a folder in diffusers' layout")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--build", action="store_true", help="also calotype build")
    options = parser.parse_args(arguments)
    print("| | seconds | load | image | peak memory |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    show = partial(print, flush=True)
    figures = measure(options.model, size=options.size, builds=options.build, show=show)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
