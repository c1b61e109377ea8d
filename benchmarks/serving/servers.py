"""Whole servers under the same traffic: `calotype bench --preset serve`.

Each server is a process of its own, and both answer with PNG files in base64. The clients of each count (1, 4 and 16)
send their requests to one server and then to the other, in turns. Every image of the first round is compared with that
of the other server.

stable-diffusion.cpp's server is not among them: it runs networks of the published sizes only, and not the demonstration
model.
"""

from __future__ import annotations

import base64
import datetime
import importlib.util
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calotype.errors import BackendError
from calotype.export.quality.metrics import psnr
from calotype.export.sources.source import find
from calotype.system.threads import available

from .traffic import Send, Traffic, requests, run

CLIENTS = (1, 4, 16)
_STEPS = (8, 12, 20)
_PEER = Path(__file__).parents[1] / "peers" / "fastapi_diffusers" / "server.py"
_START_S, _ANSWER_S = 300.0, 600.0
_PACKAGES = ("torch", "diffusers", "openvino", "onnxruntime", "fastapi", "starlette", "uvicorn")


def compare(*, rounds: int, each: int, backend: str = "auto", clients: Sequence[int] = CLIENTS) -> dict[str, Any]:
    """Run the traffic on both servers in turns.

    Args:
        rounds: Rounds of each count of clients.
        each: Requests of a client in a round.
        backend: The backend of Calotype.
        clients: The counts of clients.

    Returns:
        The figures of each round, the ratios, and the lowest PSNR between the servers' images in dB.

    Raises:
        BackendError: A server cannot start, or an answer is an error.
    """
    with ExitStack() as servers:
        sends = {
            "calotype": _posting(servers.enter_context(_server(_ours(backend))), "/v1/images/generations"),
            "FastAPI and diffusers": _posting(servers.enter_context(_server(_theirs())), "/generate"),
        }
        lowest = _lowest_psnr(sends, requests(8, 0, _STEPS))
        rows: list[dict[str, Any]] = []
        ratios: dict[str, dict[str, float]] = {}
        for count in clients:
            results = _rounds(sends, count, rounds, each)
            ours, theirs = results.values()
            rows += [{"server": name, **one.to_json()} for name, of_all in results.items() for one in of_all]
            ratios[str(count)] = {
                "images_per_s": _median([a.images_per_s / b.images_per_s for a, b in zip(ours, theirs, strict=True)]),
                "p50": _median([a.percentile_s(0.5) / b.percentile_s(0.5) for a, b in zip(ours, theirs, strict=True)]),
                "p95": _median(
                    [a.percentile_s(0.95) / b.percentile_s(0.95) for a, b in zip(ours, theirs, strict=True)]
                ),
            }
    return {"rows": rows, "ratios": ratios, "lowest_psnr_db": round(lowest, 1), **_environment()}


def _rounds(sends: Mapping[str, Send], clients: int, rounds: int, each: int) -> dict[str, list[Traffic]]:
    results: dict[str, list[Traffic]] = {name: [] for name in sends}
    for seed in range(1, rounds + 1):
        work = requests(each * clients, seed, _STEPS)
        for name in sorted(sends, reverse=seed % 2 == 0):
            results[name].append(run(sends[name], work, clients=clients, pause_s=0.05, seed=seed))
    return results


def _lowest_psnr(sends: Mapping[str, Send], work: Sequence[Mapping[str, Any]]) -> float:
    """Warm the servers up, and compare their images."""
    pairs = [[_pixels(send(arguments)) for send in sends.values()] for arguments in work]
    return min(psnr(*pair) for pair in pairs)


def _pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32) / 255


def _ours(backend: str) -> list[str]:
    return [sys.executable, "-P", "-m", "calotype", "serve", "--model", "demo", "--backend", backend, "--port"]


def _theirs() -> list[str]:
    if importlib.util.find_spec("fastapi") is None:
        raise BackendError("fastapi is not installed (pip install fastapi uvicorn)", backend="fastapi")
    return [sys.executable, "-P", str(_PEER), str(find("demo"))]


@contextmanager
def _server(command: Sequence[str]) -> Iterator[str]:
    """Start a server, wait until it is ready, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, str(port)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _START_S
            while not _is_ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise BackendError(f"{' '.join(command)} did not become ready: {log.read()[-300:].strip()}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _posting(address: str, path: str) -> Send:
    def send(arguments: Mapping[str, Any]) -> bytes:
        body = {**arguments, "response_format": "b64_json"} if path.startswith("/v1") else arguments
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                data = json.load(answer)
        except OSError as failed:
            raise BackendError(f"{address}{path} failed: {failed}") from None
        return base64.b64decode(data["data"][0]["b64_json"] if "data" in data else data["b64_json"])

    return send


def _ratio(ours: Sequence[Traffic], theirs: Sequence[Traffic], share: float) -> float:
    return _median([a.percentile_s(share) / b.percentile_s(share) for a, b in zip(ours, theirs, strict=True)])


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def _environment() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name)}
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    return {"date": date, "cores": available(), "machine": platform.machine(), "load": os.getloadavg(), **versions}


def table(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"{'server':24}{'clients':>8}{'images/s':>10}{'p50, s':>9}{'p95, s':>9}"
    for row in figures["rows"]:
        yield (f"{row['server']:24}{row['clients']:8}{row['images_per_s']:10.2f}{row['p50_s']:9.2f}{row['p95_s']:9.2f}")
    for clients, ratio in figures["ratios"].items():
        yield f"{clients} clients: {ratio['images_per_s']:.2f}x the images/s, {ratio['p95']:.2f}x the p95 latency"
    yield f"lowest PSNR between the servers' images: {figures['lowest_psnr_db']} dB"


def measure(folder: Path, *, rounds: int = 3, each: int = 4, backend: str = "auto") -> None:
    """Run the preset: write serve.json into a folder, and print the table and a last line of JSON."""
    figures = compare(rounds=rounds, each=each, backend=backend)
    (folder / "serve.json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(table(figures)))
    print(json.dumps({"benchmark": "calotype serve", "record": str(folder / "serve.json"), **figures}), flush=True)
