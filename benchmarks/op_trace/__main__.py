"""Command line: `python -m calotype.benchmarks.op_trace` prints the table of `docs/nvidia.md`. It needs no GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from .networks import CASES, Traced, trace
from .recorder import ADD, ATTENTION, BIAS, CONCATENATION, CONVOLUTION, GROUP_NORM, LAYOUT, PRODUCT, totals
from .time_model import PEAK, seconds_of, step_seconds

_SHOWN = {
    "convolutions": CONVOLUTION,
    "biases": BIAS,
    "products": PRODUCT,
    "attention": ATTENTION,
    "group norm": GROUP_NORM,
    "adds": ADD,
    "concatenations": CONCATENATION,
    "copies": LAYOUT,
}


def table(traces: Sequence[Traced]) -> str:
    """Return the Markdown table of some networks."""
    head = ["Network", "kernels", *_SHOWN, "TFLOP", "GB", "model, ms", "floor, ms"]
    rows = [head, ["---"] * len(head)]
    for traced in traces:
        counts, flops = totals(traced.ops), sum(op.flops for op in traced.ops)
        figures = [flops / 1e12, sum(op.bytes for op in traced.ops) / 1e9, 1e3 * step_seconds(traced.ops)]
        each = [str(counts[kind]) for kind in _SHOWN.values()]
        shown = [f"{figure:.3g}" for figure in (*figures, 1e3 * flops / PEAK)]
        rows.append([traced.case.title, str(traced.kernels), *each, *shown])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def details(traced: Traced) -> str:
    """Return a line for each kernel name of a network: how many, and their modelled time."""
    counts, seconds = Counter[str](), defaultdict[str, float](float)
    for op in traced.ops:
        counts[f"{op.kind}: {op.name}"] += 1
        seconds[f"{op.kind}: {op.name}"] += seconds_of(op)
    shown = sorted(seconds.items(), key=lambda item: -item[1])
    return "\n".join(f"{1e6 * s:9.0f} us {counts[name]:5d}  {name}" for name, s in shown)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="calotype.benchmarks.op_trace", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--details", action="store_true", help="list the kernels of each network")
    parser.add_argument("--json", metavar="FILE", help="write every kernel to a file")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.networks if name not in CASES]:
        parser.error(f"unknown network {unknown[0]!r}; expected some of {', '.join(CASES)}")
    traces = {name: trace(CASES[name]) for name in options.networks or CASES}
    print(table(list(traces.values())))
    if options.details:
        for name, traced in traces.items():
            print(f"\n{name}\n{details(traced)}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({name: [asdict(op) for op in traced.ops] for name, traced in traces.items()}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
