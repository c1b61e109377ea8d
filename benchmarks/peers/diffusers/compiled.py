"""torch.compile as in diffusers' own guide: U-Net and VAE decoder, max-autotune, frozen on a CPU, graphs on a GPU.

Inductor's results stay in the job's cache. The seconds of the first compilation are kept next to them, and reported
with their date when a later process finds the results.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_KEY_FIELDS = ("model", "precision", "height", "width", "batch", "guidance", "controlnets", "threads", "device")


def apply(pipe: Any, device: str) -> None:
    """Compile both at their first call. It replaces `forward` and `decode`, so that timers stay outside the graph."""
    import torch

    # Weights become constants, which allows oneDNN's packing and inductor's own matrix products on a CPU.
    torch._inductor.config.freezing = device == "cpu"

    def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        compiled_call = torch.compile(call, mode="max-autotune")
        return _owned(compiled_call) if device == "cuda" else compiled_call

    pipe.unet.forward = compiled(pipe.unet.forward)
    pipe.vae.decode = compiled(pipe.vae.decode)


def build(warm_up: Callable[[], None], job: Mapping[str, Any]) -> dict[str, Any]:
    """Run `warm_up`, which compiles everything. Return its seconds, or those of the first compilation."""
    import torch

    cache = Path(job["cache"])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    key = json.dumps(
        [{name: job[name] for name in _KEY_FIELDS}, torch.__version__, torch._inductor.config.freezing], sort_keys=True
    )
    kept = cache / f"compiled-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    began = time.perf_counter()
    warm_up()
    if kept.exists():
        record: dict[str, Any] = json.loads(kept.read_text())
        return record
    built_s = time.perf_counter() - began
    kept.write_text(json.dumps({"build_s": built_s, "build_when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}))
    return {"build_s": built_s, "build_when": ""}


def _owned(call: Callable[..., Any]) -> Callable[..., Any]:
    """Copy each output: a captured graph overwrites its last output, and schedulers keep outputs."""
    import torch

    def copied(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        out = call(*args, **kwargs)
        return tuple(each.clone() for each in out) if isinstance(out, tuple) else out

    return copied
