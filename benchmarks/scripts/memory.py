"""Resident memory of one process that serves requests of many sizes.

    python -m calotype.benchmarks.scripts.memory [--backend openvino] [--model demo] [--requests 200] [--sizes 20]
    [--steps 4]

One request in four is image-to-image, and a request generates one or two images. The sizes and their order are the same
in every run. Prints a row every `--every` requests; the last line is JSON. Linux only: the figures come from
/proc/self/smaps_rollup.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import calotype

PROMPT = "a large red circle on a blue background"
_LARGEST = 512  # pixels
_ROLLUP = Path("/proc/self/smaps_rollup")
_MIB = 2**20


def resident(rollup: Path = _ROLLUP) -> dict[str, int]:
    """Return the bytes that this process holds in memory: all, anonymous, and mapped from files."""
    lines = (line.split() for line in rollup.read_text().splitlines()[1:])
    sizes = {name.rstrip(":"): int(size) * 1024 for name, size, *_ in lines}
    return {"rss": sizes["Rss"], "anonymous": sizes["Anonymous"], "files": sizes["Rss"] - sizes["Anonymous"]}


def sizes_of(count: int, multiple: int, largest: int = _LARGEST) -> list[tuple[int, int]]:
    """Return `count` different (height, width), both multiples of `multiple` and at most `largest` pixels."""
    sides = range(max(2 * multiple, 64), largest + 1, multiple)
    every = [(height, width) for height in sides for width in sides]
    return random.Random(0).sample(every, count)


def requests(count: int, sizes: Sequence[tuple[int, int]], steps: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `count` calls of a pipeline."""
    draw = random.Random(1)
    for seed in range(count):
        height, width = draw.choice(sizes)
        request = {"prompt": PROMPT, "height": height, "width": width, "steps": steps, "seed": seed}
        yield {**request, "num_images": draw.randint(1, 2), "from_image": draw.random() < 0.25}


def measure(model: str, backend: str, calls: Iterator[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """Return memory and seconds before the first call and after each `every` calls."""
    from PIL import Image

    pipe = calotype.load(model, backend=backend)
    rows = [_row(0, time.perf_counter())]
    began = time.perf_counter()
    for done, call in enumerate(calls, start=1):
        if call.pop("from_image"):
            call["image"] = Image.new("RGB", (call["width"], call["height"]), (200, 40, 40))
        pipe(**call)
        if done % every == 0:
            rows.append(_row(done, began))
    return rows


def _row(done: int, began: float) -> dict[str, Any]:
    row = {"requests": done, "seconds": round(time.perf_counter() - began, 1), **resident()}
    columns = "  ".join(f"{name} {row[name] / _MIB:7.0f} MiB" for name in ("rss", "anonymous", "files"))
    print(f"{done:5} requests  {row['seconds']:7.1f} s  {columns}", flush=True)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args()
    from calotype.export.sources.source import read_source
    from calotype.plan.family import family_of

    multiple = family_of(read_source(options.model).configs).profile.multiple
    calls = requests(options.requests, sizes_of(options.sizes, multiple), options.steps)
    rows = measure(options.model, options.backend, calls, options.every)
    print(json.dumps({"benchmark": "memory", "backend": options.backend, "model": options.model, "rows": rows}))


if __name__ == "__main__":
    main()
