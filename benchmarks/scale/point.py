"""One point of an axis, in a process of its own: reads a job from stdin, and prints seconds and peak memory as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import calotype
from calotype.system.memory import proc_bytes

from ..suite.models import control_image

_RANK = 8


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Generate the images of a job, and return the seconds of each call, and the peak memory of the process."""
    work, folder = job["work"], Path(job["scratch"])
    size = {"height": work["size"], "width": work["size"]}
    controls: dict[str, Any] = {}
    if work["controlnets"]:
        controls["control_image"] = [control_image(**size)] * work["controlnets"]
    loras = [_lora(Path(job["model"]), folder / f"lora-{i}.safetensors", i) for i in range(work["loras"])]
    pipe = calotype.load(
        job["model"],
        backend=job["backend"],
        controlnet=[job["controlnet"]] * work["controlnets"],
        lora=[(path, 0.5) for path in loras] or None,
    )
    prompt = " ".join(["a"] * (75 * work["chunks"] - 1))  # a chunk has 75 tokens
    seconds = []
    for seed in range(1 + job["rounds"]):  # the first call compiles
        began = time.perf_counter()
        pipe([prompt] * work["batch"], steps=work["steps"], seed=seed, guidance_scale=5.0, **size, **controls)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:], "peak_bytes": proc_bytes(Path("/proc/self/status"), "VmHWM")}


def _lora(model: Path, path: Path, seed: int) -> Path:
    """Write a LoRA for the queries of all attentions, with random numbers."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    rng, tensors = np.random.default_rng(seed), {}
    for file in sorted((model / "unet").glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            for name in (name for name in weights.keys() if name.endswith("to_q.weight")):  # noqa: SIM118 - no mapping
                rows, columns = weights.get_slice(name).get_shape()
                module = "unet." + name.removesuffix(".weight")
                tensors[f"{module}.lora_A.weight"] = 0.01 * rng.standard_normal((_RANK, columns), dtype=np.float32)
                tensors[f"{module}.lora_B.weight"] = 0.01 * rng.standard_normal((rows, _RANK), dtype=np.float32)
    save_file(tensors, path)
    return path


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.stdin.read()))))
