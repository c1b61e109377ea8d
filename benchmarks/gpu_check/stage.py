"""The stages of a check, and the process of one: `python -m calotype.benchmarks.gpu_check.stage NAME --out FILE`.

A fault on a GPU makes the rest of a process useless, so each stage has a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: its function, how many seconds it may take, and whether its kernels run in the interpreter on a CPU."""

    function: str  # a module of this folder and a function in it
    seconds: float
    interprets: bool = True


# The most valuable first: a machine may be taken away at any time. The last one takes what is left.
STAGES: Mapping[str, Stage] = {
    "environment": Stage(function="machine:environment", seconds=25),
    "compile": Stage(function="machine:compilation", seconds=45, interprets=False),
    "step": Stage(function="measured:step", seconds=110),
    "images": Stage(function="images:complete_images", seconds=70),
    "right": Stage(function="machine:correctness", seconds=90),
    "others": Stage(function="measured:others", seconds=70),
    "times": Stage(function="images:image_times", seconds=60),
    "sweeps": Stage(function="measured:sweeps", seconds=60),
    "rival": Stage(function="images:rival", seconds=130),
}


def run_stage(name: str, *, device: str, tiny: bool) -> dict[str, Any]:
    """Run a stage in this process, and return its results. An error is a result as well."""
    began = time.perf_counter()
    try:
        from .device import Device

        module, _, function = STAGES[name].function.partition(":")
        run = getattr(importlib.import_module(f".{module}", __package__), function)
        results = {"status": "ok", **run(Device(name=device, tiny=tiny))}
    except Exception as failed:  # of any kind: it is what the check has to tell
        trace = traceback.format_exc().splitlines()
        results = {"status": f"failed: {type(failed).__name__}", "lines": trace[-6:], "traceback": trace}
    return {"stage": name, "seconds": time.perf_counter() - began, **results}


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.device == "cpu" and STAGES[options.stage].interprets:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    results = run_stage(options.stage, device=options.device, tiny=options.tiny)
    options.out.write_text(json.dumps(results, default=str))
    return 0 if results["status"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
