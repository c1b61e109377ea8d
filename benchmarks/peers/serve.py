"""The worker's side of the benchmark: a process of its own, in an environment of its own, that paints when it is told.

    python serve.py PEER.py

PEER.py holds a class `Peer` (see `PeerLike`); this file loads it, reads one JSON request a line on stdin and answers
each with one JSON line on stdout. What libraries print goes to stderr. Needs Python and numpy alone, and knows nothing
of Calotype: the same file serves us and everybody else, so that everybody is timed by the same clock.

Requests:
    {"op": "load", "job": {...}}                 -> {"ok": true, "load_s", "threads", "artifact_bytes", "versions",
                                                     "notes", "build_s" (null: nothing had to be made),
                                                     "build_when" ("" or when it was made, if not now)}
                                                    or {"ok": false, "cannot": "why this peer cannot do the case"}
    {"op": "paint", "prompts", "negative", "seeds", "out", "wait"}
                                                 -> {"ok": true, "seconds", "parts", "device_peak_bytes"}
    {"op": "quit"}
Any exception -> {"ok": false, "error": "its last line"}, and its traceback on stderr.

The job, the same for every peer:
    model       a folder in diffusers' layout (safetensors, fp16 or fp32 on disk)
    plan        a folder in Optimum's ONNX layout (a plan of ours, float32), or null
    backend, precision, settings     of this contender; settings are a peer's own
    height, width, batch, steps, guidance (1 or less: none)
    scheduler   {"name": "euler", "class": "EulerDiscreteScheduler", "config": {...}}, as diffusers knows it
    controlnets folders in diffusers' layout; control_images: .npy files, uint8 [H, W, 3], one for each
    threads     how many the peer may use; device: "cpu" or "cuda"
    cache       a folder that is kept between runs, for what the peer converts or compiles
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Parts = dict[str, list[float]]


class PeerLike(Protocol):
    """What a peer's file defines as `Peer`, a class without arguments."""

    parts: Parts  # component -> seconds of each of its calls in the picture just painted; {} where it cannot tell
    waits: bool  # set before each picture: on a GPU, wait for every component, so that parts can be told

    def cannot(self, job: Mapping[str, Any]) -> str | None:
        """Why this peer cannot do the case, in a few plain words; None where it can. Before anything is loaded."""

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Get ready to paint. Gives threads, artifact_bytes and versions; may give build_s, build_when and notes."""

    def paint(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        """Text in, pixels on the host out: uint8 [B, H, W, 3]. On a GPU it ends synchronized.

        The noise of picture i is what `torch.randn` draws on the CPU from the generator of seed i.
        """

    def device_peak_bytes(self) -> int | None:
        """The most device memory held so far; None where there is no device."""


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print on stdout must not be taken for an answer
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
    peer: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        began = time.perf_counter()  # before the peer's libraries are imported, wherever that is done
        try:
            peer = peer or _peer(sys.argv[1])
            loads = request["op"] == "load"
            answer = _load(peer, request["job"], began) if loads else _paint(peer, request)
        except BaseException as failed:  # a library may call sys.exit, or raise what is no Exception
            traceback.print_exc()
            told = (str(failed).strip() or type(failed).__name__).splitlines()
            answer = {"ok": False, "error": f"{type(failed).__name__}: {told[0][:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Destructors of GPU libraries and thread pools at exit are nobody's concern here, and some hang.
    sys.stderr.flush()
    os._exit(0)


def _peer(path: str) -> PeerLike:
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    spec.loader.exec_module(module)
    made: PeerLike = module.Peer()
    return made


def _load(peer: PeerLike, job: Mapping[str, Any], began: float) -> dict[str, Any]:
    why_not = peer.cannot(job)
    if why_not is not None:
        return {"ok": False, "cannot": why_not}
    told = peer.load(job)
    spent = time.perf_counter() - began
    build_s = told.get("build_s")
    made_now = build_s is not None and not told.get("build_when")
    return {
        "ok": True,
        "build_s": None,
        "build_when": "",
        "notes": [],
        **told,
        "load_s": spent - (build_s if made_now else 0.0),
    }


def _paint(peer: PeerLike, request: Mapping[str, Any]) -> dict[str, Any]:
    peer.waits = bool(request.get("wait"))
    began = time.perf_counter()
    pixels = peer.paint(request["prompts"], request["negative"], request["seeds"])
    seconds = time.perf_counter() - began
    if request.get("out"):
        np.save(request["out"], pixels)
    return {"ok": True, "seconds": seconds, "parts": peer.parts, "device_peak_bytes": peer.device_peak_bytes()}


if __name__ == "__main__":
    main()
