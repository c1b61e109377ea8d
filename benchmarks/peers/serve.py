"""The worker's side of the benchmark: a process in its own environment that generates images on request.

    python serve.py PEER.py

PEER.py defines a class `Peer` (see `PeerLike`). This file loads it, reads one JSON request a line on stdin, and answers
each with one JSON line on stdout. What libraries print goes to stderr. This file needs only Python and numpy and does
not know Calotype. It serves Calotype and all peers, so the same clock times everybody.

Requests:
    {"op": "load", "job": {...}}                 -> {"ok": true, "load_s", "threads", "artifact_bytes", "versions",
                                                     "notes", "build_s" (null: nothing to build),
                                                     "build_when" ("", or the date of an earlier build)}
                                                    or {"ok": false, "cannot": "why this peer cannot run the case"}
    {"op": "generate", "prompts", "negative", "seeds", "out", "wait"}
                                                 -> {"ok": true, "seconds", "parts", "device_peak_bytes"}
    {"op": "quit"}
An exception -> {"ok": false, "error": "its first line"}, and the traceback on stderr.

The job, the same for every peer:
    model       a folder in diffusers' layout (safetensors, fp16 or fp32 on disk)
    plan        a folder in Optimum's ONNX layout (a float32 plan of Calotype), or null
    backend, precision, settings     of this contender; each peer has its own settings
    height, width, batch, steps, guidance (1 or less: off)
    scheduler   {"name": "euler", "class": "EulerDiscreteScheduler", "config": {...}}, as diffusers knows it
    controlnets folders in diffusers' layout; control_images: .npy files, uint8 [H, W, 3], one for each
    threads     how many the peer may use; device: "cpu" or "cuda"
    cache       a folder that stays between runs, for what the peer converts or compiles
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
    """The interface of the class `Peer` in a peer's file. Its constructor takes no arguments."""

    parts: Parts  # component -> seconds of each of its calls for the last image; {} if unknown
    synchronizes: bool  # set before each image: on a GPU, synchronize after every component to time it

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        """Return why this peer cannot run the case, or None. Called before anything is loaded."""

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model. Return threads, artifact_bytes and versions; build_s, build_when and notes are optional."""

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return pixels on the host: uint8 [B, H, W, 3]. On a GPU, synchronize before the end.

        The noise of image i is that of `torch.randn` on the CPU with the generator of seed i.
        """

    def device_peak_bytes(self) -> int | None:
        """Return the peak device memory so far; None without a device."""


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries must not mix with the answers
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
    peer: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        began = time.perf_counter()  # includes the import of the peer's libraries
        try:
            peer = peer or _peer(sys.argv[1])
            loads = request["op"] == "load"
            answer = _load(peer, request["job"], began) if loads else _generate(peer, request)
        except BaseException as failed:  # a library may call sys.exit, or raise another BaseException
            traceback.print_exc()
            lines = (str(failed).strip() or type(failed).__name__).splitlines()
            answer = {"ok": False, "error": f"{type(failed).__name__}: {lines[0][:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Skip the destructors of GPU libraries and thread pools: some hang.
    sys.stderr.flush()
    os._exit(0)


def _peer(path: str) -> PeerLike:
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}: it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    spec.loader.exec_module(module)
    peer: PeerLike = module.Peer()
    return peer


def _load(peer: PeerLike, job: Mapping[str, Any], began: float) -> dict[str, Any]:
    reason = peer.unsupported_reason(job)
    if reason is not None:
        return {"ok": False, "cannot": reason}
    report = peer.load(job)
    spent = time.perf_counter() - began
    build_s = report.get("build_s")
    built_now = build_s is not None and not report.get("build_when")
    return {
        "ok": True,
        "build_s": None,
        "build_when": "",
        "notes": [],
        **report,
        "load_s": spent - (build_s if built_now else 0.0),
    }


def _generate(peer: PeerLike, request: Mapping[str, Any]) -> dict[str, Any]:
    peer.synchronizes = bool(request.get("wait"))
    began = time.perf_counter()
    pixels = peer.generate(request["prompts"], request["negative"], request["seeds"])
    seconds = time.perf_counter() - began
    if request.get("out"):
        np.save(request["out"], pixels)
    return {"ok": True, "seconds": seconds, "parts": peer.parts, "device_peak_bytes": peer.device_peak_bytes()}


if __name__ == "__main__":
    main()
