"""Command line: run all stages, each with a deadline, and print at most 80 lines at the end.

The results of each stage are in DIR/check.json as soon as it ends, its output in DIR/check.log.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .stage import STAGES

_MOST_LINES, _WIDTH = 80, 150
_LEAST_S = 5.0  # a stage that has less is not started


def run_all(
    names: Sequence[str], *, out: Path, deadline_s: float, options: Sequence[str], show: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run stages one after another, and write the results after each.

    Args:
        names: the stages.
        out: the folder of check.json and check.log.
        deadline_s: for all of them, in seconds. A stage that takes longer than its part is ended.
        options: of each stage's command.
        show: prints a line.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends, results = time.monotonic() + deadline_s, []
    for i, name in enumerate(names):
        left = ends - time.monotonic()
        limit = left if i == len(names) - 1 else min(STAGES[name].seconds, left)
        skipped = {"stage": name, "seconds": 0.0, "status": "skipped: no time left", "lines": []}
        results.append(_run(name, out, limit, options) if limit >= _LEAST_S else skipped)
        (out / "check.json").write_text(json.dumps(results, indent=1))
        show(f"{name}: {results[-1]['status']}, {results[-1]['seconds']:.1f} s")
    return results


def _run(name: str, out: Path, limit_s: float, options: Sequence[str]) -> dict[str, Any]:
    file = out / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "calotype.benchmarks.gpu_check.stage", name, "--out", str(file), *options]
    began = time.monotonic()
    with (out / "check.log").open("a", encoding="utf-8") as log:
        print(f"== {name}", file=log, flush=True)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if file.is_file():
        results: dict[str, Any] = json.loads(file.read_text())
        file.unlink()
        return results
    status = f"ended after {limit_s:.0f} s" if code is None else f"its process ended with {code}"
    lines = (out / "check.log").read_text(encoding="utf-8", errors="replace").splitlines()[-4:]
    return {"stage": name, "seconds": time.monotonic() - began, "status": status, "lines": lines}


def summary(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of all stages, at most 80, shared fairly."""
    share = max(1, (_MOST_LINES - len(results) - 1) // max(1, len(results)))
    spare = sum(max(0, share - len(each["lines"])) for each in results)
    lines = []
    for each in results:
        lines.append(f"{each['stage']}: {each['status']}, {each['seconds']:.1f} s")
        extra = min(spare, max(0, len(each["lines"]) - share))
        spare -= extra
        lines += [f"  {line}"[:_WIDTH] for line in each["lines"][: share + extra]]
    return lines[:_MOST_LINES]


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0 if every stage ended well."""
    parser = argparse.ArgumentParser(
        prog="calotype.benchmarks.gpu_check", description="Check and measure everything on a GPU, in one run."
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"some of {', '.join(STAGES)}; all by default")
    parser.add_argument("--deadline", type=float, default=570.0, help="seconds for all stages (570)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="a folder for check.json and check.log")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks: walks every stage, for tests")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}; expected some of {', '.join(STAGES)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: the full-size networks would take hours")
    if not options.deadline > 0:
        parser.error(f"--deadline {options.deadline:g} is not a positive number of seconds")
    passed_on = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    names = options.stages or list(STAGES)
    results = run_all(names, out=options.out, deadline_s=options.deadline, options=passed_on)
    print("\n".join(["", *summary(results)][:_MOST_LINES]))
    return 0 if all(each["status"] == "ok" for each in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
