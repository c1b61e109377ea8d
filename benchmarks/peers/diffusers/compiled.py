"""torch.compile as diffusers' own guide has it: U-Net and VAE decoder, max-autotune, frozen on a CPU, graphs on a GPU.

What inductor made is kept in the job's cache; the seconds that it took when nothing was there are kept beside it, and
told again (with their date) when a later process finds it done.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ASKED = ("model", "precision", "height", "width", "batch", "guidance", "controlnets", "threads", "device")


def apply(pipe: Any, device: str) -> None:
    """Compile both at their first call. `forward` and `decode` are replaced, so that timers stay outside the graph."""
    import torch

    # Weights become constants, which is what has oneDNN's packing and inductor's own products of matrices on a CPU.
    torch._inductor.config.freezing = device == "cpu"

    def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        made = torch.compile(call, mode="max-autotune")
        return _owned(made) if device == "cuda" else made

    pipe.unet.forward = compiled(pipe.unet.forward)
    pipe.vae.decode = compiled(pipe.vae.decode)


def build(warm_up: Callable[[], None], job: Mapping[str, Any]) -> dict[str, Any]:
    """Run `warm_up`, in which everything is compiled; the seconds of that, or of the first time it was done."""
    import torch

    cache = Path(job["cache"])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    asked = json.dumps(
        [{key: job[key] for key in _ASKED}, torch.__version__, torch._inductor.config.freezing], sort_keys=True
    )
    kept = cache / f"compiled-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    began = time.perf_counter()
    warm_up()
    if kept.exists():
        told: dict[str, Any] = json.loads(kept.read_text())
        return told
    built_s = time.perf_counter() - began
    kept.write_text(json.dumps({"build_s": built_s, "build_when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}))
    return {"build_s": built_s, "build_when": ""}


def _owned(call: Callable[..., Any]) -> Callable[..., Any]:
    """A captured graph writes each answer over the last one; schedulers keep answers, so they get copies."""
    import torch

    def copied(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        out = call(*args, **kwargs)
        return tuple(each.clone() for each in out) if isinstance(out, tuple) else out

    return copied
