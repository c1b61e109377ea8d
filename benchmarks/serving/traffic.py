"""Traffic: the requests of several clients, with mixed steps, schedulers and tasks; and what they measured.

Each client sends its next request when the last one is answered, after a pause that is drawn from an exponential
distribution. The requests and the pauses depend on the seed only, so every server gets the same.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEPS = (8, 12, 20, 30)
SCHEDULERS = ("euler", "dpm++2m", "ddim", "unipc", "euler_a")
COLORS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("circle", "square", "star", "ring", "cross", "heart")

Send = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a server did under the traffic of some clients.

    Attributes:
        seconds: From the first request to the last answer.
        latencies_s: Of each request.
    """

    clients: int
    seconds: float
    latencies_s: tuple[float, ...]

    @property
    def images_per_s(self) -> float:
        """The images in a second."""
        return len(self.latencies_s) / self.seconds

    def percentile_s(self, share: float) -> float:
        """Return the latency that a share of the requests did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "clients": self.clients,
            "requests": len(self.latencies_s),
            "images_per_s": round(self.images_per_s, 3),
            "mean_s": round(statistics.mean(self.latencies_s), 4),
            "p50_s": round(self.percentile_s(0.5), 4),
            "p95_s": round(self.percentile_s(0.95), 4),
        }


def requests(count: int, seed: int, steps: Sequence[int] = STEPS) -> list[dict[str, Any]]:
    """Return the arguments of `count` requests: half with guidance 7.5, the others from 1 to 5."""
    drawn = random.Random(seed)
    return [
        {
            "prompt": f"a {drawn.choice(COLORS)} {drawn.choice(SHAPES)} on a {drawn.choice(COLORS)} background",
            "steps": drawn.choice(steps),
            "scheduler": drawn.choice(SCHEDULERS),
            "guidance_scale": drawn.choice((7.5, 7.5, 5.0, 3.0)),
            "seed": seed * 1000 + i,
        }
        for i in range(count)
    ]


def run(send: Send, work: Sequence[Mapping[str, Any]], *, clients: int, pause_s: float, seed: int) -> Traffic:
    """Send the requests from some clients, and return what they measured. `send` returns when it has the answer."""
    latencies: list[float] = []
    errors: list[BaseException] = []

    def client(number: int) -> None:
        pauses = random.Random(seed * 100 + number)
        for arguments in work[number::clients]:
            time.sleep(pauses.expovariate(1 / pause_s) if pause_s else 0)
            began = time.perf_counter()
            try:
                send(arguments)
            except BaseException as failed:
                errors.append(failed)
                return
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Traffic(clients=clients, seconds=time.perf_counter() - began, latencies_s=tuple(latencies))
