"""Clients: each sends one call and waits for its image."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from .mix import Call, draw

TIMEOUT_S = 120.0  # a call that takes longer counts as one that hangs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a call.

    Attributes:
        kind: That of the call.
        ended: "image"; "refused" for 429; or what went wrong.
        seconds: From the request to the last byte of the answer.
    """

    kind: str
    ended: str
    seconds: float


async def send(client: httpx.AsyncClient, call: Call) -> Outcome:
    """Send a call, and return how it ended."""
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            ended = await (_follow(client, call) if call.is_job else _answer(client, call))
    except TimeoutError:
        ended = f"no end after {TIMEOUT_S:g} s"
    except httpx.HTTPError as failed:
        ended = type(failed).__name__
    return Outcome(kind=call.kind, ended=ended, seconds=time.perf_counter() - begin)


async def open_loop(client: httpx.AsyncClient, rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Send calls at random times (a Poisson process of `rate` calls a second), whether earlier ones have ended or not.

    Returns:
        How each call ended. It waits for the last one.
    """
    source, sent, due = random.Random(seed), [], 0.0
    begin = time.perf_counter()
    while (due := due + source.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        sent.append(asyncio.create_task(send(client, draw(source))))
    return list(await asyncio.gather(*sent))


async def closed_loop(client: httpx.AsyncClient, clients: int, seconds: float, seed: int) -> list[Outcome]:
    """Send calls from `clients` clients, each of which waits for its image before the next call."""
    end = time.perf_counter() + seconds

    async def one(source: random.Random) -> list[Outcome]:
        outcomes = []
        while time.perf_counter() < end:
            outcomes.append(await send(client, draw(source)))
        return outcomes

    rounds = await asyncio.gather(*(one(random.Random(seed + n)) for n in range(clients)))
    return [outcome for outcomes in rounds for outcome in outcomes]


async def _answer(client: httpx.AsyncClient, call: Call) -> str:
    async with client.stream("POST", call.path, json=call.body) as answer:
        if answer.status_code == 429:
            return "refused"
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        if call.streams:
            events = [data async for data in _events(answer)]
            return "image" if events and str(events[-1].get("type", "")).endswith("completed") else "no last event"
        data = json.loads(await answer.aread())
    return "image" if data.get("data") or data.get("images") else "no image"


async def _follow(client: httpx.AsyncClient, call: Call) -> str:
    answer = await client.post(call.path, json=call.body)
    if answer.status_code != 202:
        return "refused" if answer.status_code == 429 else f"status {answer.status_code}"
    async with client.stream("GET", f"/jobs/{answer.json()['id']}/events") as stream:
        *_, last = [{}, *[data async for data in _events(stream)]]
    images = last.get("images")
    if last.get("state") != "done" or not isinstance(images, list):
        return f"state {last.get('state')}"
    file = await client.get(httpx.URL(images[0]["url"]).path)
    return "image" if file.content.startswith(b"\x89PNG") else f"file {file.status_code}"


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, object]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
