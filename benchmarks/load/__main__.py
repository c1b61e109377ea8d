"""`python -m calotype.benchmarks.load`: measure a server's capacity, then load it with 0.5, 1 and 2 times that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from .client import closed_loop, open_loop, send
from .figures import slope, summary, table
from .mix import every
from .server import Server, running

LEVELS = (0.5, 1.0, 2.0)
SAMPLE_S = 0.25
_MB = 1e6


app = typer.Typer(add_completion=False)


@app.command()
def load_test(
    seconds: Annotated[float, typer.Option(help="Seconds of each load.")] = 120.0,
    clients: Annotated[int, typer.Option(help="Clients that measure the capacity.")] = 16,
    max_waiting: Annotated[int, typer.Option(help="Jobs that may wait; the server refuses others.")] = 32,
    model: Annotated[str, typer.Option(help="The model.")] = "demo",
    backend: Annotated[str, typer.Option(help="The backend.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file for the figures as JSON.")] = None,
) -> None:
    """Print a table and a last line of JSON. Exit with 1 if a call ended with anything but an image or 429."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--model", model, "--backend", backend, "--max-waiting", str(max_waiting))
        with running(*options, log=Path(folder, "server.log")) as server:
            figures = asyncio.run(_measure(server, seconds, clients))
    typer.echo(table(figures["levels"]))
    memory = figures["memory_mb"]
    typer.echo(
        "memory {per_minute:+.2f} MB a minute, 95 % between {low:+.2f} and {high:+.2f}".format(**memory["slope"])
    )
    text = json.dumps(figures)
    if output is not None:
        output.write_text(text)
    typer.echo(text)
    if any(level["errors"] for level in figures["levels"]):
        raise typer.Exit(1)


async def _measure(server: Server, seconds: float, clients: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=server.address, limits=limits, timeout=None) as client:
        for call in every():  # opens and compiles what is needed once
            await send(client, call)
        begin = time.perf_counter()
        outcomes = await closed_loop(client, clients, max(5.0, seconds / 4), seed=1)
        capacity = sum(outcome.ended == "image" for outcome in outcomes) / (time.perf_counter() - begin)
        levels: list[dict[str, Any]] = []
        samples: list[tuple[float, int]] = []
        idle = server.usage()
        async with _sampled(server, samples):
            for number, factor in enumerate(LEVELS):
                begin, rate = time.perf_counter(), factor * capacity
                outcomes = await open_loop(client, rate, seconds, seed=2 + number)
                levels.append({"load": factor, "rate": rate, **summary(outcomes, time.perf_counter() - begin)})
        after = server.usage()
    megabytes = [memory / _MB for _, memory in samples]
    return {
        "capacity": round(capacity, 3),
        "seconds": seconds,
        "levels": levels,
        "memory_mb": {
            "first": round(megabytes[0], 1),
            "last": round(megabytes[-1], 1),
            "most": round(max(megabytes), 1),
            "slope": slope([at for at, _ in samples], megabytes),
        },
        "threads": [idle.threads, after.threads],
        "files": [idle.files, after.files],
    }


@contextlib.asynccontextmanager
async def _sampled(server: Server, samples: list[tuple[float, int]]) -> AsyncIterator[None]:
    """Add the server's memory to `samples`, with its time in seconds, while the block runs."""

    async def sample() -> None:
        while True:
            samples.append((time.perf_counter(), server.usage().memory_bytes))
            await asyncio.sleep(SAMPLE_S)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()


if __name__ == "__main__":
    app()
