"""An accelerated pipeline compared with eager diffusers and `calotype.load`: `python -m ...scripts.accelerated`.

    python -m calotype.benchmarks.scripts.accelerated [demo | sd15 | FOLDER] [--size 512] [--steps 10] [--compile]
    python -m calotype.benchmarks.scripts.accelerated [demo | sd15 | FOLDER] --memory

All contenders generate the same image in one process, in turns. The rows have the median seconds of an image, the
speed against `load`, and the PSNR to eager's image; eager itself runs once. Then comes the time that a call of the
accelerated U-Net takes besides its artifact. The last line of the output is JSON. `--compile` adds torch.compile.
`--memory` prints the resident memory after two images, with and without PyTorch's weights in memory (Linux).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calotype
from calotype.backends.component import LoadedComponent
from calotype.export.quality.metrics import psnr
from calotype.system import threads

PROMPT, SEED = "a small red ring on a white background", 3
Images = NDArray[Any]


def measure(model: str, *, size: int | None, steps: int, rounds: int, compiles: bool, backend: str) -> dict[str, Any]:
    """Return the rows by contender, and the time that a call of the accelerated U-Net takes besides its artifact."""
    import torch

    torch.set_num_threads(threads.available())
    folder = _folder(model)
    side = {} if size is None else {"height": size, "width": size}
    pipe, loaded = _open(folder), calotype.load(folder, backend=backend)
    ours = {"steps": steps, "guidance_scale": 7.5, "seed": SEED, "output_type": "np", "scheduler": pipe.scheduler}
    calls: dict[str, Callable[[], Images]] = {
        "calotype.load": lambda: np.asarray(loaded(PROMPT, **ours, **side).images),
        "calotype.accelerate": lambda: _image(pipe, steps, side),
    }
    began = time.perf_counter()
    expected = _image(pipe, steps, side)
    rows = {"diffusers": {"seconds": time.perf_counter() - began, "psnr_db": float("inf")}}
    if compiles:
        other = _open(folder)
        other.unet.compile(mode="max-autotune")
        other.vae.decoder.compile(mode="max-autotune")
        calls["torch.compile"] = lambda: _image(other, steps, side)
    calotype.accelerate(pipe, backend=backend, verify=False)
    images = {name: call() for name, call in calls.items()}  # traces and compiles
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    overheads: list[float] = []
    with _overheads(pipe.unet, overheads):
        for _ in range(rounds):
            for name, call in calls.items():
                gc.collect()
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    for name, each in seconds.items():
        rows[name] = {"seconds": statistics.median(each), "psnr_db": float(psnr(images[name], expected))}
    return {"model": model, "size": size, "steps": steps, "rows": rows, "overhead_s": statistics.median(overheads)}


def measure_memory(model: str, *, size: int | None, steps: int, backend: str) -> dict[str, Any]:
    """Return the resident memory after two images, in MiB: with eager weights, and with them in a mapped file."""
    side = {} if size is None else {"height": size, "width": size}
    pipe = _open(_folder(model))
    figures: dict[str, Any] = {"model": model, "size": size, "steps": steps}
    for name, keeps in (("keep_eager=True", True), ("keep_eager=False", False)):
        calotype.accelerate(pipe, backend=backend, verify=False, keep_eager=keeps)
        for _ in range(2):
            _image(pipe, steps, side)
        gc.collect()
        figures[name] = _resident_mib()
    return figures


def _resident_mib() -> dict[str, int]:
    """Return the resident memory of this process: its own, and that of files, which the system may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"own": kib["RssAnon"] >> 10, "of files": kib["RssFile"] >> 10}


def _folder(model: str) -> Path:
    from calotype.export.sources.configs import MODELS

    from ..suite.models import model_folder

    if model == "demo":
        return Path(calotype.__file__).parent / "demo_model"
    return model_folder(model) if model in MODELS else Path(model)


def _open(folder: Path) -> Any:
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _image(pipe: Any, steps: int, side: Mapping[str, int]) -> Images:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    arguments = {"num_inference_steps": steps, "guidance_scale": 7.5, "generator": generator, "output_type": "np"}
    images: Images = pipe(PROMPT, **arguments, **side).images
    return images


@contextmanager
def _overheads(unet: Any, overheads: list[float]) -> Iterator[None]:
    """Time each call of the accelerated U-Net, and append what its artifact did not take."""
    forward, inner = unet.forward, [0.0]
    run = LoadedComponent.__call__

    def artifact(self: LoadedComponent, **inputs: Any) -> Any:
        began = time.perf_counter()
        outputs = run(self, **inputs)
        inner[0] = time.perf_counter() - began
        return outputs

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = forward(*args, **kwargs)
        overheads.append(time.perf_counter() - began - inner[0])
        return result

    LoadedComponent.__call__ = artifact  # type: ignore[method-assign]
    unet.forward = call
    try:
        yield
    finally:
        LoadedComponent.__call__ = run  # type: ignore[method-assign]
        unet.forward = forward


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="demo, sd15, or a folder in diffusers' layout")
    parser.add_argument("--size", type=int, help="pixels of a side; the default is the model's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes minutes")
    parser.add_argument("--memory", action="store_true", help="the resident memory in place of the seconds")
    options = parser.parse_args(arguments)
    if options.memory:
        print(json.dumps(measure_memory(options.model, size=options.size, steps=2, backend=options.backend)))
        return
    figures = measure(
        options.model,
        size=options.size,
        steps=options.steps,
        rounds=options.rounds,
        compiles=options.compile,
        backend=options.backend,
    )
    base = figures["rows"]["calotype.load"]["seconds"]
    print("| | s per image | speed against load | PSNR to diffusers |\n| --- | ---: | ---: | ---: |")
    for name, row in figures["rows"].items():
        print(f"| {name} | {row['seconds']:.3f} | {base / row['seconds']:.2f}x | {row['psnr_db']:.0f} dB |")
    print(f"\na call of the accelerated U-Net takes {1e3 * figures['overhead_s']:.2f} ms besides its artifact")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
